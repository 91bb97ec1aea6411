"""Examples to encoded rows: every row kept, dropped and counted, or named as faulty."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from peftctl.data import encode
from peftctl.data.encode import Encoding, Outcome, Rows, epoch_of
from peftctl.data.sources import Side, Sourced, Tally, read, read_examples
from peftctl.errors import DataError, PeftctlError, Place
from peftctl.example import Example, Pair, RowFault, Segment, Segments
from peftctl.methods.lora import LoraSettings
from peftctl.recipe import Recipe
from peftctl.recipe.schema import DataSettings, EvalSource, ModelSettings, Source, TrainSettings
from peftctl.tasks import TASKS
from tests import tiny
from tests.unit import kinds
from tests.unit.kinds import assistant, system, user

TASK = TASKS["causal_lm"]


def sourced(*examples: Example) -> list[Sourced]:
    return [Sourced(Place("rows", line), example) for line, example in enumerate(examples, start=1)]


def encoded(
    examples: Sequence[Sourced], longest: int = 100, name: str = "training", *, tokenizer: Any = None, **settings: Any
) -> Rows:
    """The rows of examples that were read without losses; ``most_bad`` as in Tally, the rest as in Encoding."""
    tally = Tally(settings.pop("most_bad", None), read=len(examples))
    return encode.encode(
        Side(examples, tally), Encoding(TASK, tokenizer or tiny.tokenizer(), longest, **settings), name
    )


def plain(prompt: str, completion: str) -> Segments:
    return Segments((Segment(prompt), Segment(completion, 1.0)))


def recipe(folder: Path, rows: int, held_out: EvalSource | None, seed: int = 0, files: int = 1) -> Recipe:
    sources = []
    for number in range(files):
        made = [{"prompt": f"{number}:{index}", "completion": "c"} for index in range(rows)]
        sources.append(Source(path=tiny.jsonl(folder / f"{number}.jsonl", made).name))
    data = DataSettings(train=tuple(sources), eval=held_out)
    return Recipe(ModelSettings(name="m"), data, LoraSettings(), "out", train=TrainSettings(seed=seed), folder=folder)


def prompts(rows: Side | None) -> list[str]:
    return [row.example.pieces[0].text for row in rows.examples if isinstance(row.example, Segments)] if rows else []


def test_rows_are_kept_in_order_and_counted() -> None:
    rows = encoded(sourced(plain("ab", "c"), plain("", "de")))
    assert [len(row) for row in rows.encoded] == [4, 3]
    assert [source.place.line for source in rows.sources] == [1, 2]
    # The end of text is learned; the second row's first token has nothing before it to be predicted from.
    assert rows.facts() == {
        "read": 2, "kept": 2, "dropped": {}, "rows": 2, "tokens": 7, "supervised_tokens": 4, "longest": 4,
    }  # fmt: skip


def test_a_row_of_just_the_longest_length_is_kept_and_a_longer_one_dropped() -> None:
    examples = sourced(plain("a" * 6, "c"), plain("a" * 7, "c"), plain("a" * 8, "c"))
    rows = encoded(examples, 9)
    assert [len(row) for row in rows.encoded] == [8, 9]
    assert rows.read == 3
    assert rows.dropped == {"longer than max_length": 1}


def test_rows_without_an_answer_are_dropped_and_counted() -> None:
    examples = sourced(kinds.chat(user("q")), kinds.chat(user("q"), assistant("a")), kinds.chat(user("r")))
    rows = encoded(examples)
    assert [source.place.line for source in rows.sources] == [2]
    assert rows.dropped == {"nothing to learn": 2}


def test_no_row_left_is_an_error_that_says_why() -> None:
    with pytest.raises(DataError) as error:
        encoded(sourced(plain("a" * 50, "c"), plain("a" * 60, "c")), 8, "held-out")
    assert str(error.value) == (
        "none of the 2 held-out rows is left: 2 longer than max_length\nhint: data.max_length is 8"
    )
    with pytest.raises(DataError) as error:
        encoded(sourced(kinds.chat(user("q"))), 8000)
    assert str(error.value) == (
        "none of the 1 training rows is left: 1 nothing to learn\nhint: no row has a turn or text to learn"
    )


def test_every_row_that_cannot_be_encoded_is_named() -> None:
    bad = kinds.chat(system("s"), user("q"), assistant("a"))
    good = kinds.chat(user("q"), assistant("a"))
    with pytest.raises(DataError) as error:
        encoded(sourced(good, bad, good, bad), 500, tokenizer=tiny.tokenizer(kinds.GEMMA))
    lines = error.value.message.split("\n")
    assert [line.split(": ")[0] for line in lines] == ["rows:2", "rows:4"]
    assert all("the chat template refuses these messages: System role not supported" in line for line in lines)


def test_ten_faulty_rows_are_shown_and_the_rest_counted() -> None:
    bad = kinds.chat(system("s"), user("q"), assistant("a"))
    with pytest.raises(DataError) as error:
        encoded(sourced(*[bad] * 12), 500, tokenizer=tiny.tokenizer(kinds.GEMMA))
    lines = error.value.message.split("\n")
    assert len(lines) == 11
    assert lines[-1] == "... and 2 more"


def test_chats_for_a_tokenizer_without_a_chat_template_are_an_error_and_no_bug() -> None:
    with pytest.raises(PeftctlError, match="chat template"):
        encode.encode(
            Side(sourced(kinds.chat(user("q"), assistant("a"))), Tally()), Encoding(TASK, tiny.tokenizer(None), 500), ""
        )


@pytest.mark.parametrize("chat", [True, False])
def test_half_a_surrogate_pair_in_a_row_is_a_fault_of_that_row_and_no_bug(tmp_path: Path, chat: bool) -> None:
    """JSON can say "\\ud83d" alone, as files cut by UTF-16 units do; no tokenizer takes it."""
    rows: list[Any] = (
        [{"messages": [{"role": "user", "content": "\ud83d"}, {"role": "assistant", "content": "a"}]}]
        if chat
        else [{"prompt": "\ud83d", "completion": "c"}]
    )
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: "):
        encoded(read_examples(path, "auto", None, "causal_lm"), 500)


# Which rows are held out


def test_without_held_out_rows_all_are_for_training(tmp_path: Path) -> None:
    train, held_out = read(recipe(tmp_path, 5, None, files=2))
    assert prompts(train) == [f"{number}:{index}" for number in range(2) for index in range(5)]
    assert held_out is None


@pytest.mark.parametrize(
    ("held_out", "count"),
    [(EvalSource(count=4), 4), (EvalSource(split=0.25), 5), (EvalSource(split=0.001), 1), (EvalSource(split=0.9), 18)],
)
def test_rows_held_out_are_as_many_as_asked_for_and_none_is_trained_on(
    tmp_path: Path, held_out: EvalSource, count: int
) -> None:
    train, kept_back = read(recipe(tmp_path, 10, held_out, files=2))
    assert len(prompts(kept_back)) == count == train.held_out
    assert train.tally.read == 20
    every = [f"{number}:{index}" for number in range(2) for index in range(10)]
    assert sorted(prompts(train) + prompts(kept_back)) == sorted(every)
    # Both keep the order of the files.
    assert prompts(train) == [name for name in every if name in prompts(train)]
    assert prompts(kept_back) == [name for name in every if name in prompts(kept_back)]


def test_the_seed_says_which_rows_are_held_out(tmp_path: Path) -> None:
    taken = [prompts(read(recipe(tmp_path, 50, EvalSource(count=10), seed))[1]) for seed in (0, 0, 1)]
    assert taken[0] == taken[1]
    assert taken[0] != taken[2]


def test_more_rows_held_out_include_the_fewer(tmp_path: Path) -> None:
    few, many = (prompts(read(recipe(tmp_path, 50, EvalSource(count=n)))[1]) for n in (5, 20))
    assert set(few) < set(many)


@pytest.mark.parametrize("held_out", [EvalSource(count=10), EvalSource(count=99), EvalSource(split=0.99)])
def test_holding_out_every_row_is_refused(tmp_path: Path, held_out: EvalSource) -> None:
    with pytest.raises(DataError, match="are to be held out of 10, so none would be left to train on"):
        read(recipe(tmp_path, 10, held_out))


def test_held_out_rows_may_have_a_file_of_their_own(tmp_path: Path) -> None:
    tiny.jsonl(tmp_path / "eval.jsonl", [{"prompt": f"e{n}", "completion": "c"} for n in range(4)])
    train, held_out = read(recipe(tmp_path, 5, EvalSource(path="eval.jsonl", limit=3)))
    assert len(train.examples) == 5
    assert prompts(held_out) == ["e0", "e1", "e2"]


def test_many_rows_encoded_at_once_stay_in_order_and_keep_their_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "CHUNK", 3)
    rows = [plain("a" * n, "b") if n % 5 else plain("x", "") for n in range(1, 50)]
    found = encoded(sourced(*rows), 500)
    assert [len(row) for row in found.encoded] == [n + 2 for n in range(1, 50) if n % 5]
    assert found.dropped == {"nothing to learn": 9}
    assert [s.place.line for s in found.sources] == [n for n in range(1, 50) if n % 5]


# What becomes of examples, counted


def test_a_kept_row_of_just_one_is_counted_in_numbers() -> None:
    rows = encoded(sourced(plain("a" * 20, "c" * 20)), 12, overlong="split")
    assert rows.facts()["split"] == 1
    assert type(rows.split) is int


def test_truncated_split_and_left_out_parts_are_counted_apart() -> None:
    examples = sourced(plain("a" * 3, "c"), plain("a" * 20, "c" * 20), plain("a" * 40, "c"))
    assert encoded(examples, 12, overlong="truncate_start").facts()["truncated"] == 2
    assert encoded(examples, 12, overlong="truncate_end", learn="all").dropped == {"nothing to learn": 2}
    split = encoded(examples, 12, overlong="split")
    assert split.facts() == {
        "read": 3, "kept": 3, "dropped": {}, "rows": 5, "tokens": 5 + 12 + 12 + 8 + 9, "supervised_tokens": 2 + 21 + 2,
        "longest": 12, "split": 2, "dropped_parts": {"nothing to learn": 4},
    }  # fmt: skip
    assert split.of.tolist() == [0, 1, 1, 1, 2]


def test_an_example_s_place_comes_once_however_many_rows_it_has() -> None:
    rows = encoded(sourced(plain("a" * 90, "c"), plain("a", "c" * 40), plain("a", "b")), 12, overlong="split")
    assert len(rows) > 3
    assert [row.place.line for row in rows.sources] == [1, 2, 3]


def test_rows_of_one_conversation_are_kept_or_left_out_one_by_one() -> None:
    """This template gives a row for each answer, the later ones longer."""
    chat = kinds.chat(user("q"), assistant("<think>x</think>a"), user("r" * 60), assistant("b"))
    whole = encoded(sourced(chat), 500, tokenizer=tiny.tokenizer(kinds.FORGETFUL))
    assert len(whole) == 2
    short = len(whole.encoded[0])
    rows = encoded(sourced(chat, chat), short, tokenizer=tiny.tokenizer(kinds.FORGETFUL))
    assert list(rows.encoded) == [whole.encoded[0]] * 2
    facts = rows.facts()
    assert (facts["kept"], facts["rows"], facts["dropped"]) == (2, 2, {})
    assert facts["dropped_parts"] == {"longer than max_length": 2}
    cut = encoded(sourced(chat), short, tokenizer=tiny.tokenizer(kinds.FORGETFUL), overlong="truncate_start").facts()
    assert (cut["rows"], cut["truncated"]) == (2, 1)


@pytest.mark.parametrize(("way", "reason"), [("drop", "longer than max_length"), ("truncate_end", "nothing to learn")])
def test_a_row_of_which_nothing_is_left_is_dropped_for_what_happened_to_it(way: str, reason: str) -> None:
    rows = encoded(sourced(plain("a", "b"), plain("a" * 40, "b")), 12, overlong=way)
    assert rows.dropped == {reason: 1}
    assert "truncated" not in rows.facts()
    assert "dropped_parts" not in rows.facts()


def test_rows_that_cannot_be_encoded_are_left_out_and_counted_where_they_may_be() -> None:
    good, bad = kinds.chat(user("q"), assistant("a")), kinds.chat(system("s"), user("q"), assistant("a"))
    gemma = tiny.tokenizer(kinds.GEMMA)
    rows = encoded(sourced(good, bad, good), tokenizer=gemma, most_bad=0.4)
    assert rows.dropped == {"refused by the chat template": 1}
    assert [row.place.line for row in rows.sources] == [1, 3]
    with pytest.raises(DataError, match=r"^1 of 3 rows are bad \(33\.3%; 1 refused by the chat template\), more than"):
        encoded(sourced(good, bad, good), tokenizer=gemma, most_bad=0.3)


def test_an_example_of_another_task_is_a_fault_of_its_row() -> None:
    made = encode.encode_some([plain("a", "b"), Pair("a", "b"), plain("c", "d")], Encoding(TASK, tiny.tokenizer(), 100))
    assert [isinstance(row, RowFault) for row in made] == [False, True, False]
    assert str(made[1]) == "a Pair, where causal_lm learns from Conversation, Segments"
    assert encode.outcome(made[1], Encoding(TASK, tiny.tokenizer(), 100)).fault is made[1]


def test_an_outcome_of_nothing_at_all_counts_nothing() -> None:
    made = encode.outcome([], Encoding(TASK, tiny.tokenizer(), 100))
    assert made == Outcome(rows=[], parts={})


# Which rows an epoch takes


def weighted(counts: Sequence[int], weights: Sequence[float], seed: int = 0) -> list[tuple[int, int]]:
    """For each row of an epoch the number of its source and its number there."""
    examples = [Sourced(Place("f", n), plain("a", "b"), number) for number, c in enumerate(counts) for n in range(c)]
    rows = encoded(examples)
    taken = epoch_of(rows, examples, weights, seed)
    if taken is None:
        return []
    return [(examples[rows.of[row]].source, examples[rows.of[row]].place.line) for row in taken]


def test_sources_without_weights_make_no_list_of_an_epoch() -> None:
    assert weighted([3, 4], [1.0, 1.0]) == []


@pytest.mark.parametrize(("weight", "count"), [(2.0, 16), (0.5, 4), (1.5, 12), (0.25, 2), (3.125, 25)])
def test_an_epoch_takes_a_source_s_rows_as_often_as_its_weight_says(weight: float, count: int) -> None:
    taken = weighted([5, 8], [1.0, weight])
    assert [line for source, line in taken if source == 0] == list(range(5))
    often = [sum(source == 1 and line == n for source, line in taken) for n in range(8)]
    assert sum(often) == count
    assert set(often) <= {int(weight), int(weight) + (weight % 1 > 0)}


def test_the_seed_says_which_rows_half_a_weight_takes() -> None:
    assert weighted([50], [0.5], 3) == weighted([50], [0.5], 3)
    assert weighted([50], [0.5], 3) != weighted([50], [0.5], 4)
    # Two sources of one length do not give the same numbers.
    taken = weighted([50, 50], [0.5, 0.5])
    assert [line for source, line in taken if source == 0] != [line for source, line in taken if source == 1]


def test_a_source_of_a_tiny_weight_gives_at_least_one_row() -> None:
    assert len(weighted([4, 3], [0.01, 1.0])) == 4
    assert len(weighted([4], [0.01])) == 1


def test_rows_of_an_epoch_are_of_kept_examples_alone() -> None:
    """Numbers count rows, not examples: the first example is dropped, the second has two rows."""
    examples = [
        Sourced(Place("f", 1), plain("", "a" * 300), 0),
        Sourced(Place("f", 2), kinds.chat(user("q"), assistant("<think>x</think>a"), user("r"), assistant("b")), 1),
        Sourced(Place("f", 3), plain("a", "b"), 0),
    ]
    forgetful = Encoding(TASK, tiny.tokenizer(kinds.FORGETFUL), 200)
    rows = encode.encode(Side(examples, Tally(read=3)), forgetful, "training")
    assert rows.of.tolist() == [1, 1, 2]
    taken = epoch_of(rows, examples, [3.0, 1.0], 0)
    assert taken is not None
    assert np.bincount(rows.of[taken], minlength=3).tolist() == [0, rows.of.tolist().count(1), 3]
