"""What is learned of a conversation: each assistant turn's text through its end-of-turn token, nothing else."""

from __future__ import annotations

import contextlib

import pytest

from peftctl.example import Conversation, RowFault, Segment, Turn
from peftctl.text import chat
from tests import tiny
from tests.unit import kinds
from tests.unit.kinds import TEMPLATES, Template, assistant, system, user

each_template = pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: template.name)

CONTENTS = {
    "plain": "yes",
    "spaces around": "  yes  ",
    "newlines around": "\n\nyes\n\n",
    "tabs and inner blank lines": "a\t b\n\n\nc",
    "emoji": "👩‍👩‍👧‍👦 ok 🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "CJK": "今日は、世界。",
    "right to left": "שלום",
    "combining": "e\u0301 n\u0303",
    "template syntax": "{{ messages }} {% endfor %} {# no #}",
    "HTML": "<b>&amp; \"quoted\" 'text'</b>",
    "a role word": "assistant",
    "the question over again": "is 3 odd?",
}
each_content = pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())


def learned(conversation: Conversation, template: str) -> list[str]:
    return [p.text for p in chat.segments(conversation, tiny.tokenizer(template)).pieces if p.weight]


def text(conversation: Conversation, template: str) -> str:
    return "".join(piece.text for piece in chat.segments(conversation, tiny.tokenizer(template)).pieces)


@each_template
@each_content
def test_the_learned_part_is_the_answer_and_its_end_of_turn(template: Template, content: str) -> None:
    conversation = kinds.chat(user("is 3 odd?"), assistant(content))
    assert learned(conversation, template.jinja) == [template.learned(content)]


@each_template
@each_content
def test_content_of_other_turns_does_not_move_the_learned_part(template: Template, content: str) -> None:
    conversation = kinds.chat(user(content), assistant("yes"), user(content), assistant("no"), user(content))
    assert learned(conversation, template.jinja) == [template.learned("yes"), template.learned("no")]


@each_template
def test_the_pieces_join_to_the_template_s_text(template: Template) -> None:
    turns = (user("  one\n"), assistant(" two "), user("three"), assistant("four\n"), user("five"))
    assert text(Conversation(turns), template.jinja) == "".join(template.write(turn) for turn in turns)


@each_template
def test_what_stands_before_a_learned_part_is_what_inference_shows(template: Template) -> None:
    turns = (user("one"), assistant("two"), user("three"), assistant("four"))
    tokenizer = tiny.tokenizer(template.jinja)
    pieces = chat.segments(Conversation(turns), tokenizer).pieces
    asked = [index for index, piece in enumerate(pieces) if piece.weight]
    for index, turn in zip(asked, (1, 3), strict=True):
        shown = tokenizer.apply_chat_template(
            [{"role": t.role, "content": t.content} for t in turns[:turn]], tokenize=False, add_generation_prompt=True
        )
        assert "".join(piece.text for piece in pieces[:index]) == shown


def test_chatml_pieces_are_exactly_these() -> None:
    made = chat.segments(
        kinds.chat(system("be brief"), user("q"), assistant("a", 0.5), user("r")), tiny.tokenizer(tiny.CHATML)
    )
    assert made.pieces == (
        Segment("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"),
        Segment("a<|im_end|>", 0.5),
        Segment("\n<|im_start|>user\nr<|im_end|>\n"),
    )
    assert not made.whole


def test_the_turn_s_own_white_space_is_learned_and_the_template_s_after_it_is_not() -> None:
    template = (
        "{% for m in messages %}{{ m['role'] }}> {{ m['content'] }}\n\n{% endfor %}"
        "{% if add_generation_prompt %}assistant> {% endif %}"
    )
    assert learned(kinds.chat(user("q"), assistant(" a \n")), template) == [" a \n"]


@pytest.mark.parametrize(
    "content",
    ["<|im_end|>", "a<|im_end|>\n<|im_start|>user\nb", "<|im_start|>assistant\n", "<|im_start|>", "\n<|im_end|>\n"],
)
def test_markers_in_an_answer_are_text_of_the_answer(content: str) -> None:
    assert learned(kinds.chat(user("q"), assistant(content)), tiny.CHATML) == [f"{content}<|im_end|>"]
    several = kinds.chat(user("q"), assistant(content), user("r"), assistant("b"))
    assert learned(several, tiny.CHATML) == [f"{content}<|im_end|>", "b<|im_end|>"]


@pytest.mark.parametrize(
    "content", ["<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>", "<|im_start|>assistant\n", "[/INST] yes</s>"]
)
@each_template
def test_markers_in_a_question_are_never_learned(template: Template, content: str) -> None:
    assert learned(kinds.chat(user(content), assistant("no")), template.jinja) == [template.learned("no")]


def test_white_space_that_the_template_trims_is_not_found_again_behind_the_end_of_turn() -> None:
    """The answer, trimmed, and the template's end of turn and newline hold the untrimmed answer once more."""
    conversation = kinds.chat(user("q"), assistant("<end_of_turn>\n"))
    assert learned(conversation, kinds.GEMMA) == ["<end_of_turn><end_of_turn>"]


def test_a_turn_of_weight_zero_is_read_and_not_learned() -> None:
    conversation = kinds.chat(user("q"), assistant("bad", 0.0), user("r"), assistant("good"))
    assert learned(conversation, tiny.CHATML) == ["good<|im_end|>"]


def test_a_turn_that_no_generation_prompt_announces_cannot_be_learned() -> None:
    with pytest.raises(RowFault, match="the chat template writes message 2 differently"):
        learned(kinds.chat(system("s"), Turn("user", "q", 1.0), assistant("a")), kinds.SPACED)


def test_a_conversation_without_an_answer_has_nothing_learned() -> None:
    assert learned(kinds.chat(system("s"), user("q")), tiny.CHATML) == []


def test_equal_answers_are_each_found_in_their_own_place() -> None:
    turns = [turn for _ in range(5) for turn in (user("yes"), assistant("yes"))]
    pieces = chat.segments(Conversation(tuple(turns)), tiny.tokenizer()).pieces
    assert [p.text for p in pieces if p.weight] == ["yes<|im_end|>"] * 5
    assert len(pieces) == 11


@pytest.mark.parametrize("template", [t for t in TEMPLATES if not t.system], ids=lambda template: template.name)
def test_a_system_turn_is_refused_with_the_template_s_own_complaint(template: Template) -> None:
    complaint = {
        "gemma": "System role not supported",
        "mistral": "Conversation roles must alternate user/assistant/user/assistant/...",
    }[template.name]
    with pytest.raises(RowFault) as refused:
        chat.segments(kinds.chat(system("s"), user("q"), assistant("a")), tiny.tokenizer(template.jinja))
    assert str(refused.value) == f"the chat template refuses these messages: {complaint}"


def test_a_template_that_rewrites_an_earlier_turn_is_refused() -> None:
    conversation = kinds.chat(user("q"), assistant("<think>hm</think>a"), user("r"), assistant("b"))
    with pytest.raises(RowFault) as refused:
        chat.segments(conversation, tiny.tokenizer(kinds.FORGETFUL))
    assert str(refused.value) == (
        "the chat template writes message 2 differently when generating than in a history, "
        "so no mask for it would match inference"
    )


def test_a_template_that_rewrites_history_learns_what_it_does_not_rewrite() -> None:
    last = kinds.chat(user("q"), assistant("a"), user("r"), assistant("<think>hm</think>b"))
    assert learned(last, kinds.FORGETFUL) == ["a<|im_end|>", "<think>hm</think>b<|im_end|>"]
    unlearned = kinds.chat(user("q"), assistant("<think>hm</think>a", 0.0), user("r"), assistant("b"))
    assert learned(unlearned, kinds.FORGETFUL) == ["b<|im_end|>"]


def test_an_end_of_turn_that_only_the_last_turn_has_is_refused_in_earlier_ones() -> None:
    template = tiny.CHATML.replace(
        "<|im_end|>\n", "{% if message['role'] == 'user' or loop.last %}<|im_end|>{% endif %}\n"
    )
    assert learned(kinds.chat(user("q"), assistant("a")), template) == ["a<|im_end|>"]
    with pytest.raises(RowFault, match="writes message 2 differently"):
        learned(kinds.chat(user("q"), assistant("a"), user("r"), assistant("b")), template)


def test_a_generation_prompt_that_the_history_does_not_have_is_refused() -> None:
    template = tiny.CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>{% endif %}")
    with pytest.raises(RowFault, match="writes message 2 differently when generating"):
        learned(kinds.chat(user("q"), assistant("a")), template)


def test_a_template_that_alters_the_answer_is_refused() -> None:
    template = tiny.CHATML.replace("message['content']", "message['content'] | upper")
    with pytest.raises(RowFault) as refused:
        learned(kinds.chat(user("q"), assistant("yes")), template)
    assert str(refused.value) == "the chat template does not write the text of message 2 as it stands"


def test_what_the_template_puts_between_prompt_and_answer_is_learned_too() -> None:
    template = tiny.CHATML.replace(
        "{{ message['content'] }}",
        "{% if message['role'] == 'assistant' %}<think></think>{% endif %}{{ message['content'] }}",
    )
    assert learned(kinds.chat(user("q"), assistant("a")), template) == ["<think></think>a<|im_end|>"]


def test_a_conversation_that_an_assistant_opens_is_refused_or_learned_but_no_bug() -> None:
    conversation = kinds.chat(assistant("hello"), user("q"))
    with contextlib.suppress(RowFault):
        assert learned(conversation, tiny.CHATML) in (["hello<|im_end|>"], ["<|im_start|>assistant\nhello<|im_end|>"])


def test_a_template_s_own_error_is_a_fault_of_the_row() -> None:
    for template in ("{{ messages[0]['content'] + 3 }}", "{{ 1 / 0 }}", "{{ messages[7]['content'] }}"):
        with pytest.raises(RowFault, match="the chat template refuses these messages"):
            learned(kinds.chat(user("q"), assistant("a")), template)


def test_rendering_gives_the_template_s_text_with_and_without_the_prompt() -> None:
    turns = (system("s"), user("q"))
    said = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
    tokenizer = tiny.tokenizer()
    assert chat.render(turns, tokenizer, generation_prompt=False) == said
    assert chat.render(turns, tokenizer, generation_prompt=True) == said + "<|im_start|>assistant\n"
