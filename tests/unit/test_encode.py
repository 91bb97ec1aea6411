"""Examples to encoded rows: every row kept, dropped and counted, or named as faulty."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftctl.data import encode
from peftctl.data.sources import Sourced, read_examples
from peftctl.errors import DataError, PeftctlError, Place
from peftctl.example import Conversation, Segment, Segments
from peftctl.methods.lora import LoraSettings
from peftctl.recipe import Recipe
from peftctl.recipe.schema import DataSettings, EvalSource, ModelSettings, Source, TrainSettings
from peftctl.tasks import TASKS
from tests import tiny
from tests.unit import kinds
from tests.unit.kinds import assistant, user

TASK = TASKS["causal_lm"]


def sourced(*examples: Conversation | Segments) -> list[Sourced]:
    return [Sourced(Place("rows", line), example) for line, example in enumerate(examples, start=1)]


def plain(prompt: str, completion: str) -> Segments:
    return Segments((Segment(prompt), Segment(completion, 1.0)))


def recipe(folder: Path, rows: int, held_out: EvalSource | None, seed: int = 0, files: int = 1) -> Recipe:
    sources = []
    for number in range(files):
        made = [{"prompt": f"{number}:{index}", "completion": "c"} for index in range(rows)]
        sources.append(Source(path=tiny.jsonl(folder / f"{number}.jsonl", made).name))
    data = DataSettings(train=tuple(sources), eval=held_out)
    return Recipe(ModelSettings(name="m"), data, LoraSettings(), "out", train=TrainSettings(seed=seed), folder=folder)


def prompts(rows: list[Sourced]) -> list[str]:
    return [row.example.pieces[0].text for row in rows if isinstance(row.example, Segments)]


def test_rows_are_kept_in_order_and_counted() -> None:
    rows = encode.encode(sourced(plain("ab", "c"), plain("", "de")), TASK, tiny.tokenizer(), 100, "training")
    assert [len(row) for row in rows.encoded] == [4, 3]
    assert [source.place.line for source in rows.sources] == [1, 2]
    # The end of text is learned; the second row's first token has nothing before it to be predicted from.
    assert rows.facts() == {
        "read": 2, "kept": 2, "dropped": {}, "tokens": 7, "supervised_tokens": 4, "longest": 4,
    }  # fmt: skip


def test_a_row_of_just_the_longest_length_is_kept_and_a_longer_one_dropped() -> None:
    examples = sourced(plain("a" * 6, "c"), plain("a" * 7, "c"), plain("a" * 8, "c"))
    rows = encode.encode(examples, TASK, tiny.tokenizer(), 9, "training")
    assert [len(row) for row in rows.encoded] == [8, 9]
    assert rows.read == 3
    assert rows.dropped == {"longer than max_length": 1}


def test_rows_without_an_answer_are_dropped_and_counted() -> None:
    examples = sourced(kinds.chat(user("q")), kinds.chat(user("q"), assistant("a")), kinds.chat(user("r")))
    rows = encode.encode(examples, TASK, tiny.tokenizer(), 100, "training")
    assert [source.place.line for source in rows.sources] == [2]
    assert rows.dropped == {"nothing to learn": 2}


def test_no_row_left_is_an_error_that_says_why() -> None:
    with pytest.raises(DataError) as error:
        encode.encode(sourced(plain("a" * 50, "c"), plain("a" * 60, "c")), TASK, tiny.tokenizer(), 8, "held-out")
    assert str(error.value) == (
        "none of the 2 held-out rows is left: 2 longer than max_length\nhint: data.max_length is 8"
    )
    with pytest.raises(DataError) as error:
        encode.encode(sourced(kinds.chat(user("q"))), TASK, tiny.tokenizer(), 8000, "training")
    assert str(error.value) == (
        "none of the 1 training rows is left: 1 nothing to learn\nhint: no row has a turn or text to learn"
    )


def test_every_row_that_cannot_be_encoded_is_named() -> None:
    bad = kinds.chat(user("q"), assistant("<think>x</think>a"), user("r"), assistant("b"))
    good = kinds.chat(user("q"), assistant("a"))
    with pytest.raises(DataError) as error:
        encode.encode(sourced(good, bad, good, bad), TASK, tiny.tokenizer(kinds.FORGETFUL), 500, "training")
    lines = error.value.message.split("\n")
    assert [line.split(": ")[0] for line in lines] == ["rows:2", "rows:4"]
    assert all("the chat template writes message 2 differently" in line for line in lines)


def test_ten_faulty_rows_are_shown_and_the_rest_counted() -> None:
    bad = kinds.chat(user("q"), assistant("<think>x</think>a"), user("r"), assistant("b"))
    with pytest.raises(DataError) as error:
        encode.encode(sourced(*[bad] * 12), TASK, tiny.tokenizer(kinds.FORGETFUL), 500, "training")
    lines = error.value.message.split("\n")
    assert len(lines) == 11
    assert lines[-1] == "... and 2 more"


def test_chats_for_a_tokenizer_without_a_chat_template_are_an_error_and_no_bug() -> None:
    with pytest.raises(PeftctlError, match="chat template"):
        encode.encode(sourced(kinds.chat(user("q"), assistant("a"))), TASK, tiny.tokenizer(None), 500, "training")


@pytest.mark.parametrize("chat", [True, False])
def test_half_a_surrogate_pair_in_a_row_is_a_fault_of_that_row_and_no_bug(tmp_path: Path, chat: bool) -> None:
    """JSON can say "\\ud83d" alone, as files cut by UTF-16 units do; no tokenizer takes it."""
    rows: list[Any] = (
        [{"messages": [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "a"}]}]
        if chat
        else [{"prompt": "\ud83d", "completion": "c"}]
    )
    path = tmp_path / "rows.jsonl"
    import json

    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: "):
        encode.encode(read_examples(path, "auto", None, "causal_lm"), TASK, tiny.tokenizer(), 500, "training")


# Which rows are held out


def test_without_held_out_rows_all_are_for_training(tmp_path: Path) -> None:
    train, held_out = encode.read(recipe(tmp_path, 5, None, files=2))
    assert prompts(train) == [f"{number}:{index}" for number in range(2) for index in range(5)]
    assert held_out == []


@pytest.mark.parametrize(
    ("held_out", "count"),
    [(EvalSource(count=4), 4), (EvalSource(split=0.25), 5), (EvalSource(split=0.001), 1), (EvalSource(split=0.9), 18)],
)
def test_rows_held_out_are_as_many_as_asked_for_and_none_is_trained_on(
    tmp_path: Path, held_out: EvalSource, count: int
) -> None:
    train, kept_back = encode.read(recipe(tmp_path, 10, held_out, files=2))
    assert len(kept_back) == count
    every = [f"{number}:{index}" for number in range(2) for index in range(10)]
    assert sorted(prompts(train) + prompts(kept_back)) == sorted(every)
    # Both keep the order of the files.
    assert prompts(train) == [name for name in every if name in prompts(train)]
    assert prompts(kept_back) == [name for name in every if name in prompts(kept_back)]


def test_the_seed_says_which_rows_are_held_out(tmp_path: Path) -> None:
    taken = [prompts(encode.read(recipe(tmp_path, 50, EvalSource(count=10), seed))[1]) for seed in (0, 0, 1)]
    assert taken[0] == taken[1]
    assert taken[0] != taken[2]


def test_more_rows_held_out_include_the_fewer(tmp_path: Path) -> None:
    few, many = (prompts(encode.read(recipe(tmp_path, 50, EvalSource(count=n)))[1]) for n in (5, 20))
    assert set(few) < set(many)


@pytest.mark.parametrize("held_out", [EvalSource(count=10), EvalSource(count=99), EvalSource(split=0.99)])
def test_holding_out_every_row_is_refused(tmp_path: Path, held_out: EvalSource) -> None:
    with pytest.raises(DataError, match="are to be held out of 10, so none would be left to train on"):
        encode.read(recipe(tmp_path, 10, held_out))


def test_held_out_rows_may_have_a_file_of_their_own(tmp_path: Path) -> None:
    tiny.jsonl(tmp_path / "eval.jsonl", [{"prompt": f"e{n}", "completion": "c"} for n in range(4)])
    train, held_out = encode.read(recipe(tmp_path, 5, EvalSource(path="eval.jsonl", limit=3)))
    assert len(train) == 5
    assert prompts(held_out) == ["e0", "e1", "e2"]


def test_many_rows_encoded_at_once_stay_in_order_and_keep_their_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "CHUNK", 3)
    rows = [plain("a" * n, "b") if n % 5 else plain("x", "") for n in range(1, 50)]
    found = encode.encode(sourced(*rows), TASK, tiny.tokenizer(), 500, "training")
    assert [len(row) for row in found.encoded] == [n + 2 for n in range(1, 50) if n % 5]
    assert found.dropped == {"nothing to learn": 9}
    assert [s.place.line for s in found.sources] == [n for n in range(1, 50) if n % 5]
