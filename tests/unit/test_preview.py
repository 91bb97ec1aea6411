"""What ``peftctl data`` finds: tokens as text, figures of all rows, doubles, and what it warns of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftctl.data.prepare import open_rows
from peftctl.data.preview import Preview, preview, tokens
from peftctl.errors import UsageError
from peftctl.recipe import load
from peftctl.recipe.resolve import resolve
from peftctl.text.tokens import Encoded
from tests import tiny
from tests.jobs import recipe_text


def look(folder: Path, base: Path, side: str = "train", start: int = 1, count: int = 3, **sections: Any) -> Preview:
    path = folder / "r.yaml"
    path.write_text(recipe_text(folder, base, **sections))
    opened = open_rows(resolve(load(path)), lambda _: None)
    return preview(opened, lambda _: None, side=side, start=start, count=count)


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_tokens_read_on_as_the_text_and_a_letter_of_many_bytes_goes_to_the_last_of_them() -> None:
    tokenizer = tiny.tokenizer()
    text = "a 👩‍👩‍👧 é<|im_end|>日本 " * 5
    ids = tokenizer(text)["input_ids"]
    made = tokens(Encoded(tuple(ids), tuple([1.0] * len(ids))), tokenizer)
    assert "".join(token.text for token in made) == text
    assert [token.id for token in made] == ids
    assert made[0].weight == 0.0  # nothing comes before it to predict it from
    assert {token.weight for token in made[1:]} == {1.0}
    first = made[ids.index(tokenizer.convert_tokens_to_ids("<|im_end|>"))]
    assert first.text == "<|im_end|>"


def test_what_is_learned_is_marked_and_places_are_those_of_the_file(tmp_path: Path, tiny_model: Path) -> None:
    found = look(tmp_path, tiny_model, start=2, count=2)
    assert [row.place.rpartition(":")[2] for row in found.rows] == ["2", "3"]
    learned = "".join(token.text for token in found.rows[0].tokens if token.weight)
    assert learned in ("odd<|im_end|>", "even<|im_end|>")


def test_where_truncation_fell_is_shown(tmp_path: Path, tiny_model: Path) -> None:
    tiny.jsonl(tmp_path / "train.jsonl", [chat("q", "a" * 100), chat("q" * 60, "yes"), chat("short", "yes")])
    found = look(tmp_path, tiny_model, data={"max_length": 40, "overlong": "truncate_end"})
    first = found.rows[0]
    assert len(first.tokens) == 40
    assert first.cut_before == 0
    whole = len(tiny.tokenizer().apply_chat_template(chat("q", "a" * 100)["messages"], return_dict=False))
    assert first.cut_after == whole - 40
    side = found.sides["train"]
    assert side.facts["truncated"] == 1  # the other one has nothing learned left, and is dropped
    assert side.facts["dropped"] == {"nothing to learn": 1}
    assert any("1 of 2 answers do not end with an end of turn" in warning for warning in found.warnings)
    found = look(tmp_path, tiny_model, data={"max_length": 40, "overlong": "truncate_start"})
    assert (found.rows[0].cut_before, found.rows[0].cut_after) == (whole - 40, 0)


def test_a_row_cut_into_several_is_shown_in_its_parts(tmp_path: Path, tiny_model: Path) -> None:
    tiny.jsonl(tmp_path / "train.jsonl", [chat("q", "a" * 100)] * 2)
    found = look(tmp_path, tiny_model, count=1, data={"max_length": 60, "overlong": "split"})
    assert [row.part for row in found.rows] == ["row 1 of 3", "row 2 of 3", "row 3 of 3"]


def test_lengths_counts_and_shares_are_those_of_the_rows(tmp_path: Path, tiny_model: Path) -> None:
    found = look(tmp_path, tiny_model, data={"eval": {"count": 4}})
    side = found.sides["train"]
    assert side.facts["read"] == 24
    assert side.facts["held_out"] == 4
    assert side.facts["kept"] == 20
    assert sum(count for _, _, count in side.histogram) == 20
    assert side.percentiles[100] == side.facts["longest"]
    assert side.percentiles[0] <= side.percentiles[50] <= side.percentiles[99]
    low, high, _ = side.histogram[0]
    assert (low, high) == (1, -(-side.facts["longest"] // 10))
    said = found.as_dict()
    assert said["sides"]["train"]["supervised_share"] == side.facts["supervised_tokens"] / side.facts["tokens"]
    assert said["sources"][0]["format"] == "messages"


def test_rows_that_are_there_twice_and_held_out_rows_that_are_trained_are_found(
    tmp_path: Path, tiny_model: Path
) -> None:
    rows = [chat(f"question {n}", "a long answer") for n in range(10)]
    tiny.jsonl(tmp_path / "train.jsonl", [*rows, *rows[:3], rows[0]])
    tiny.jsonl(tmp_path / "eval.jsonl", [rows[5], rows[6], chat("question 7", "another answer"), chat("new", "answer")])
    found = look(tmp_path, tiny_model, data={"eval": "eval.jsonl"})
    assert found.sides["train"].duplicates == 4
    assert found.sides["eval"].duplicates == 0
    assert found.also_trained == 2
    assert found.also_asked == 3
    assert "2 held-out rows are training rows too: what is measured is partly memory" in found.warnings
    assert "train: 4 of 14 rows are the same as one before them" in found.warnings


def test_many_rows_too_long_and_short_answers_are_warned_of(tmp_path: Path, tiny_model: Path) -> None:
    rows = [chat("q" * 100, "ok")] * 4 + [chat(f"q{n}", "k") for n in range(6)]
    tiny.jsonl(tmp_path / "train.jsonl", rows)
    found = look(tmp_path, tiny_model, data={"max_length": 60})
    assert "train: 4 of 10 rows (40%) are dropped as longer than data.max_length 60" in found.warnings
    assert "train: 6 of 6 answers have under 3 tokens" in found.warnings


def test_good_rows_give_no_warning(tmp_path: Path, tiny_model: Path) -> None:
    tiny.jsonl(tmp_path / "train.jsonl", [chat(f"question {n}", f"answer {n}") for n in range(30)])
    assert look(tmp_path, tiny_model).warnings == ()


def test_a_template_that_ends_answers_with_mere_text_is_warned_of(tmp_path: Path, tiny_model: Path) -> None:
    tiny.jsonl(tmp_path / "train.jsonl", [chat(f"question {n}", f"answer {n}") for n in range(5)])
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    found = look(tmp_path, tiny_model, data={"template": template})
    assert any("5 of 5 answers do not end with an end of turn" in warning for warning in found.warnings)


def test_of_a_stream_the_first_rows_are_measured_once_each(tmp_path: Path, tiny_model: Path) -> None:
    found = look(
        tmp_path, tiny_model, data={"streaming": True, "eval": {"count": 4}}, train={"epochs": None, "max_steps": 2}
    )
    assert found.sides["train"].facts["kept"] == 20
    assert found.sides["eval"].facts["kept"] == 4
    assert found.also_trained == 0


@pytest.mark.parametrize(
    ("side", "start", "fault"),
    [("eval", 1, "--from eval: the recipe holds out no rows"), ("train", 25, "there is no row 25; allowed: 1 to 24")],
)
def test_rows_there_are_not_are_an_error(tmp_path: Path, tiny_model: Path, side: str, start: int, fault: str) -> None:
    with pytest.raises(UsageError, match=fault):
        look(tmp_path, tiny_model, side=side, start=start)


def test_text_that_becomes_a_special_token_is_warned_of(tmp_path: Path, tiny_model: Path) -> None:
    rows = [chat(f"question {n}", f"answer {n}") for n in range(9)]
    tiny.jsonl(tmp_path / "train.jsonl", [*rows, chat("x", "no <|im_end|>\n<|im_start|>user\nhaha")])
    found = look(tmp_path, tiny_model)
    assert "train: 1 rows hold the text <|im_end|>, which becomes that special token" in found.warnings
