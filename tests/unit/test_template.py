"""Which chat template is used: ours by name, a file's, or text; what of it is refused, and what ends a turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftctl.errors import UsageError
from peftctl.example import Conversation, Turn
from peftctl.tasks import TASKS
from peftctl.text import chat, template
from peftctl.text.templates import TEMPLATES
from tests import tiny
from tests.unit import kinds
from tests.unit.kinds import assistant, system, user

# Tokens by family, numbered from 256 on after the bytes, which are their own ids.
TOKENS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<bos>", "<start_of_turn>", "<end_of_turn>"),
    "mistral": ("<s>", "</s>"),
}
BEGINS = {"llama3": "<|begin_of_text|>", "gemma": "<bos>", "mistral": "<s>"}
ENDS = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>"}


def tokenizer(family: str, written: str | None = None) -> Any:
    begin = BEGINS.get(family)
    return kinds.bytes_are_ids(TOKENS[family], written, begin=begin, bos_token=begin, eos_token=ENDS[family])


def letters(*parts: str | int) -> list[int]:
    """Ids: a text's letters are their own bytes, a number is itself."""
    return [number for part in parts for number in (part.encode() if isinstance(part, str) else [part])]


def refused(written: str, path: Path | str = "none") -> str:
    with pytest.raises(UsageError) as fault:
        template.read(written, Path(path))
    return fault.value.message


TURNS = (system("be\n"), user(" q "), assistant("a"), user("r"), assistant("b\n"))
IDS = {
    "chatml": (
        letters(256, "system\nbe\n", 257, "\n", 256, "user\n q ", 257, "\n", 256, "assistant\n"),
        letters("a", 257),
        letters("\n", 256, "user\nr", 257, "\n", 256, "assistant\n"),
        letters("b\n", 257),
        letters("\n"),
    ),
    "llama3": (
        letters(
            256, 257, "system", 258, "\n\nbe", 259, 257, "user", 258, "\n\nq", 259, 257, "assistant", 258, "\n\n"
        ),
        letters("a", 259),
        letters(257, "user", 258, "\n\nr", 259, 257, "assistant", 258, "\n\n"),
        letters("b", 259),
        [],
    ),
    "gemma": (
        letters(256, 257, "user\nbe\n\nq", 258, "\n", 257, "model\n"),
        letters("a", 258),
        letters("\n", 257, "user\nr", 258, "\n", 257, "model\n"),
        letters("b", 258),
        letters("\n"),
    ),
    "mistral": (
        letters(256, "[INST] be\n\n\n q  [/INST]"),
        letters(" a", 257),
        letters("[INST] r [/INST]"),
        letters(" b\n", 257),
        [],
    ),
}  # fmt: skip


def test_every_named_template_has_its_ids_below() -> None:
    assert set(TEMPLATES) == set(IDS)


@pytest.mark.parametrize("family", IDS)
def test_a_named_template_writes_the_family_s_ids_with_one_begin_of_text(family: str) -> None:
    """The tokenizer puts the begin of text before plain text itself, and the template writes it too."""
    made = tokenizer(family)
    template.choose(made, family, "some/model")
    (rows,) = TASKS["causal_lm"].encode([Conversation(TURNS)], made)
    assert isinstance(rows, list)
    (row,) = rows
    wanted = [(number, 1.0 if part % 2 else 0.0) for part, ids in enumerate(IDS[family]) for number in ids]
    assert list(zip(row.ids, row.weights, strict=True)) == wanted


@pytest.mark.parametrize("family", IDS)
def test_a_named_template_without_a_system_turn_writes_none(family: str) -> None:
    made = tokenizer(family)
    template.choose(made, family, "some/model")
    begins = {
        "chatml": letters(256, "user\nq", 257, "\n"),
        "llama3": letters(256, 257, "user", 258, "\n\nq", 259),
        "gemma": letters(256, 257, "user\nq", 258, "\n"),
        "mistral": letters(256, "[INST] q [/INST]"),
    }
    shown = chat.render((user("q"),), made, generation_prompt=False)
    assert made(shown, add_special_tokens=False)["input_ids"] == begins[family]


@pytest.mark.parametrize("family", BEGINS)
def test_the_tokenizer_of_these_tests_puts_a_begin_of_text_itself(family: str) -> None:
    assert tokenizer(family)("a")["input_ids"] == [256, 97]


def test_a_begin_of_text_that_the_tokenizer_lacks_is_left_out() -> None:
    made = kinds.bytes_are_ids(TOKENS["gemma"][1:])
    template.choose(made, "gemma", "some/model")
    assert chat.render((user("q"),), made, generation_prompt=False) == "<start_of_turn>user\nq<end_of_turn>\n"


def test_mistral_by_name_has_no_turn_for_a_tool() -> None:
    made = tokenizer("mistral")
    template.choose(made, "mistral", "some/model")
    turns = (user("q"), assistant("a"), Turn("tool", "t"), assistant("b"))
    (fault,) = TASKS["causal_lm"].encode([Conversation(turns)], made)
    assert str(fault) == (
        "the chat template refuses these messages: mistral has the roles system, user and assistant only"
    )


def test_without_a_setting_the_tokenizer_s_own_template_stays() -> None:
    made = tiny.tokenizer("own {{ messages }}")
    template.choose(made, None, "some/model")
    assert made.chat_template == "own {{ messages }}"


def test_text_takes_the_place_of_the_tokenizer_s_own() -> None:
    made = tiny.tokenizer("own {{ messages }}")
    template.choose(made, "{{ messages[0].content }}", "some/model")
    assert chat.render((user("q"),), made, generation_prompt=False) == "q"


def test_the_chosen_template_is_saved_with_the_tokenizer(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made = tiny.tokenizer("own {{ messages }}")
    template.choose(made, "chatml", "some/model")
    made.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == TEMPLATES["chatml"].text


@pytest.mark.parametrize(
    ("name", "lacking"),
    [
        ("llama3", "<|start_header_id|>, <|end_header_id|>, <|eot_id|>"),
        ("gemma", "<start_of_turn>, <end_of_turn>"),
    ],
)
def test_a_named_template_whose_tokens_the_tokenizer_lacks_is_refused(name: str, lacking: str) -> None:
    made = tiny.tokenizer()
    with pytest.raises(UsageError) as fault:
        template.choose(made, name, "some/model")
    assert fault.value.message == (
        f"data.template: {name} writes {lacking}, which is no token of some/model's tokenizer"
    )
    assert made.chat_template == tiny.CHATML


def test_only_the_tokens_that_lack_are_named() -> None:
    made = kinds.bytes_are_ids(("<|im_start|>",))
    with pytest.raises(UsageError, match=r"chatml writes <\|im_end\|>, which is no token of m's tokenizer"):
        template.choose(made, "chatml", "m")


def test_an_end_of_text_that_the_tokenizer_lacks_is_refused() -> None:
    with pytest.raises(UsageError) as fault:
        template.choose(kinds.bytes_are_ids(()), "mistral", "some/model")
    assert fault.value.message == (
        "data.template: mistral ends answers with the end of text, which some/model has no token for"
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_name_stands_for_itself(name: str) -> None:
    assert template.read(name, Path("none")) == name


@pytest.mark.parametrize("text", ["{{ messages }}", "{% for m in messages %}{{ m.content }}{% endfor %}"])
def test_jinja_text_stands_for_itself(text: str) -> None:
    assert template.read(text, Path("none")) == text


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_file_stands_for_its_text(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "mine.jinja"
    path.write_bytes(f"{{{{ messages[0].content }}}} é{ending}.".encode())
    made = tiny.tokenizer(None)
    template.choose(made, template.read("mine.jinja", path), "some/model")
    assert chat.render((user("q"),), made, generation_prompt=False) == "q é\n."


def test_the_mark_that_windows_puts_first_is_no_part_of_a_template(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_bytes(b"\xef\xbb\xbf{{ messages }}")
    assert template.read("mine.jinja", path) == "{{ messages }}"


def test_a_file_of_a_known_name_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "gemma"
    path.write_text("{{ messages }}")
    assert template.read("gemma", path) == "gemma"


def test_tags_that_transformers_adds_to_jinja_are_known() -> None:
    text = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    assert template.read(text, Path("none")) == text


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{{ messages }\n", "data.template:1: no Jinja template: unexpected '}'"),
        ("a\n{% for m in messages %}\n\n{% endif %}",
         "data.template:4: no Jinja template: Encountered unknown tag 'endif'."),
        ("a\nb {{ messages | nothing }}", "data.template:2: no Jinja template: No filter named 'nothing'."),
    ],
)  # fmt: skip
def test_a_mistake_in_jinja_text_is_shown_with_its_line(text: str, fault: str) -> None:
    assert refused(text).startswith(fault)


def test_a_mistake_in_a_file_is_shown_with_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text("a\nb\n{{ messages }\n")
    assert refused("mine.jinja", path) == f"data.template: {path}:3: no Jinja template: unexpected '}}'"


def test_jinja_nested_too_deeply_is_no_bug_of_ours() -> None:
    assert refused("{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}") == (
        "data.template: no Jinja template: nested too deeply"
    )


ALLOWED = "allowed: chatml, llama3, gemma, mistral, a Jinja file, or Jinja text"


@pytest.mark.parametrize(
    ("name", "near"),
    [("chatlm", "chatml"), ("llama-3", "llama3"), ("Gemma", "gemma"), ("misstral", "mistral"), ("zzzzzz", None)],
)
def test_an_unknown_name_gets_the_nearest_known_one(tmp_path: Path, name: str, near: str | None) -> None:
    said = f"data.template: '{name}' is no template that peftctl knows, and no text file; {ALLOWED}"
    assert refused(name, tmp_path / name) == said + (f"; did you mean {near}?" if near else "")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    said = refused("zzzzzz", tmp_path)
    assert "no text file ([Errno 21] Is a directory" in said
    assert said.endswith(ALLOWED)


def test_what_cannot_be_a_file_s_name_is_refused(tmp_path: Path) -> None:
    assert "no text file (embedded null byte)" in refused("a\0b", tmp_path / "a\0b")


def test_a_file_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_bytes("{{ messages }} é".encode("latin-1"))
    assert "no text file ('utf-8" in refused("mine.jinja", path)


@pytest.mark.parametrize("letter", ["a", "é", "🙂"])
def test_a_file_that_is_too_large_is_refused_and_never_cut(tmp_path: Path, letter: str) -> None:
    """Bytes are counted: a file of a million letters of two bytes each is longer than what is read of it."""
    path = tmp_path / "mine.jinja"
    path.write_bytes(b"{{ messages }}")
    for more in range(4):
        path.write_text("{{ messages }}" + "." * more + letter * (1 << 20), encoding="utf-8")
        assert refused("mine.jinja", path) == f"data.template: {path}: longer than a template can be (1048576 bytes)"


def test_a_file_of_just_the_most_bytes_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.jinja"
    path.write_bytes(b"." * (1 << 20))
    assert len(template.read("mine.jinja", path)) == 1 << 20


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(text)
    assert refused("mine.jinja", path) == f"data.template: {path}: is empty"


@pytest.mark.parametrize("family", IDS)
def test_the_end_of_a_turn_is_the_token_that_ends_answers(family: str) -> None:
    made = tokenizer(family)
    template.choose(made, family, "some/model")
    assert template.end_of_turn(made) == {"chatml": 257, "llama3": 259, "gemma": 258, "mistral": 257}[family]


@pytest.mark.parametrize(
    "written",
    [
        None,  # no template
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}{% if add_generation_prompt %}"
        "assistant: {% endif %}",  # ends with a letter of the answer
        "{% for m in messages %}{{ m.content }}!{% endfor %}",  # ends with a letter of its own
        kinds.FORGETFUL.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{% endif %}"),
        "{{ raise_exception('never') }}",
    ],
)
def test_where_no_token_ends_an_answer_there_is_no_end_of_turn(written: str | None) -> None:
    assert template.end_of_turn(tiny.tokenizer(written)) is None


def test_an_end_of_turn_that_is_no_special_token_but_an_added_one_is_found() -> None:
    """As Qwen's <|im_end|> in base models, which marks no end of text there."""
    made = kinds.bytes_are_ids(TOKENS["chatml"], TEMPLATES["chatml"].text, eos_token="<|im_start|>")
    assert template.end_of_turn(made) == 257
