"""Rows read while training: their order follows from the recipe, their memory does not grow, all are counted."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from peftctl.data import files, stream
from peftctl.data.encode import Encoding
from peftctl.data.stream import Sequential, Stream
from peftctl.errors import DataError, UsageError
from peftctl.methods.lora import LoraSettings
from peftctl.recipe import Recipe
from peftctl.recipe.schema import DataSettings, EvalSource, ModelSettings, Source, TrainSettings
from peftctl.tasks import TASKS
from peftctl.text.tokens import Encoded
from tests import tiny
from tests.unit import kinds

END = "<|im_end|>"


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", 16)
    monkeypatch.setattr(stream, "JUDGED", 20)


def lines(path: Path, count: int, prefix: str = "") -> Source:
    tiny.jsonl(path, [{"text": f"{prefix}{n}"} for n in range(count)])
    return Source(path=path.name)


def recipe(folder: Path, *train: Source, seed: int = 0, **data: Any) -> Recipe:
    settings = DataSettings(train=train or (Source(path="rows.jsonl"),), streaming=True, **data)
    return Recipe(
        ModelSettings(name="m"), settings, LoraSettings(), "out", train=TrainSettings(seed=seed), folder=folder
    )


def opened(made: Recipe, longest: int = 100, template: str | None = tiny.CHATML) -> Stream:
    encoding = Encoding(
        TASKS["causal_lm"], tiny.tokenizer(template), longest, made.data.learn, made.data.overlong or "drop"
    )
    return Stream(made, encoding)


def text(row: Encoded) -> str:
    return kinds.decode(tiny.tokenizer(), row.ids).removesuffix(END)


def texts(made: Recipe, count: int, **how: Any) -> list[str]:
    return [text(row) for row in islice(opened(made, **how).rows(), count)]


def refused(made: Recipe, count: int = 100, **how: Any) -> DataError:
    with pytest.raises(DataError) as error:
        texts(made, count, **how)
    return error.value


def test_the_order_is_a_function_of_the_recipe(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 40)
    first = texts(recipe(tmp_path), 200)
    assert texts(recipe(tmp_path), 200) == first
    assert texts(recipe(tmp_path, seed=1), 200) != first
    assert first[:16] != [str(n) for n in range(16)]
    # Two blocks of the same rows are shuffled each in a way of its own.
    same = texts(recipe(tmp_path, Source(path="rows.jsonl", limit=16)), 32)
    assert sorted(same[:16]) == sorted(same[16:])
    assert same[:16] != same[16:]


def test_every_row_comes_once_before_any_comes_again(tmp_path: Path) -> None:
    """What is smaller than a block is shuffled pass by pass; in what is larger, block by block."""
    lines(tmp_path / "rows.jsonl", 10)
    found = texts(recipe(tmp_path), 160)
    for at in range(0, 160, 10):
        assert sorted(found[at : at + 10]) == [str(n) for n in range(10)]
    assert len({tuple(found[at : at + 10]) for at in range(0, 160, 10)}) > 10
    lines(tmp_path / "rows.jsonl", 40)
    found = texts(recipe(tmp_path), 80)
    for start, size in ((0, 16), (16, 16), (32, 8), (40, 16), (56, 16), (72, 8)):
        assert sorted(map(int, found[start : start + size])) == [n % 40 for n in range(start, start + size)]


def test_a_file_without_an_end_is_never_read_to_it(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 1000)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("broken\n")
    assert len(texts(recipe(tmp_path), 900)) == 900


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (0.5, 2.0), (1.0, 2.5)])
def test_sources_are_mixed_by_their_weights(tmp_path: Path, weights: tuple[float, float]) -> None:
    one, two = lines(tmp_path / "a.jsonl", 7, "a"), lines(tmp_path / "b.jsonl", 50, "b")
    made = recipe(
        tmp_path,
        one.model_copy(update={"weight": weights[0]}),
        two.model_copy(update={"weight": weights[1]}),
    )
    for blocks in (1, 3, 40):
        found = texts(made, 16 * blocks)
        share = sum(each.startswith("a") for each in found)
        assert abs(share - 16 * blocks * weights[0] / sum(weights)) <= 8  # the last block is in an order of its own
    often = Counter(texts(made, 16 * 40))
    assert max(often[f"a{n}"] for n in range(7)) - min(often[f"a{n}"] for n in range(7)) <= 2


def test_a_small_file_is_counted_once_for_each_time_it_was_read(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 12)
    made = opened(recipe(tmp_path, eval=EvalSource(count=2)))
    list(islice(made.rows(), 7))
    assert (made.facts()["read"], made.facts()["held_out"], made.facts()["kept"]) == (12, 2, 10)
    list(islice(made.rows(), 7))
    assert made.facts()["read"] == 24


def test_held_out_rows_never_appear(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 10)
    lines(tmp_path / "more.jsonl", 5, "m")
    made = recipe(tmp_path, Source(path="rows.jsonl"), Source(path="more.jsonl"), eval=EvalSource(count=3))
    held_out = stream.held_out(made, opened(made).encoding, print)
    assert held_out is not None
    assert [text(row) for row in held_out.encoded] == ["0", "1", "2"]
    found = set(texts(made, 500))
    assert found == {*map(str, range(3, 10)), *(f"m{n}" for n in range(5))}


def test_held_out_rows_of_their_own_leave_the_stream_whole(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 4)
    lines(tmp_path / "eval.jsonl", 3, "e")
    made = recipe(tmp_path, eval=EvalSource(path="eval.jsonl", filter="text != 'e1'"))
    held_out = stream.held_out(made, opened(made).encoding, print)
    assert held_out is not None
    assert [text(row) for row in held_out.encoded] == ["e0", "e2"]
    assert (held_out.read, held_out.filtered) == (3, 1)
    assert set(texts(made, 32)) == {"0", "1", "2", "3"}
    assert stream.held_out(recipe(tmp_path), opened(made).encoding, print) is None


def test_facts_add_up(tmp_path: Path) -> None:
    rows = [{"text": "x" * (n % 30 + 1), "skip": n % 4 == 0} for n in range(50)]
    tiny.jsonl(tmp_path / "rows.jsonl", rows)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("broken\n[1]\n")
    made = recipe(
        tmp_path,
        Source(path="rows.jsonl", filter="not skip"),
        eval=EvalSource(count=4),
        on_bad_row="drop",
        max_bad_fraction=0.1,
    )
    found = opened(made, 20)
    taken = list(islice(found.rows(), 100))
    facts = found.facts()
    assert facts["read"] == facts["filtered"] + facts["held_out"] + facts["kept"] + sum(facts["dropped"].values())
    assert set(facts["dropped"]) == {"broken JSON", "not an object", "longer than max_length"}
    assert facts["held_out"] % 4 == 0
    assert facts["rows"] >= len(taken)
    assert facts["longest"] == 20
    assert json.loads(json.dumps(facts)) == facts
    # What the counters say of tokens is what came, where all of it came.
    found = opened(recipe(tmp_path, Source(path="rows.jsonl", limit=8)), 100)
    eight = list(islice(found.rows(), 16))
    facts = found.facts()
    assert facts["read"] == facts["rows"] == facts["kept"] == 16
    assert facts["tokens"] == sum(map(len, eight))
    assert facts["supervised_tokens"] == sum(row.supervised for row in eight)


def test_truncated_and_split_rows_are_counted(tmp_path: Path) -> None:
    tiny.jsonl(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": "b" * 40}])
    split = opened(recipe(tmp_path, overlong="split"), 12)
    rows = list(islice(split.rows(), 40))
    facts = split.facts()
    assert (facts["kept"], facts["split"], facts["rows"]) == (16, 8, 8 + 8 * 4)
    assert len(rows) == 40
    assert max(map(len, rows)) == 12
    cut = opened(recipe(tmp_path, overlong="truncate_end"), 12)
    assert len(list(islice(cut.rows(), 16))) == 16
    assert cut.facts()["truncated"] == 8
    one = opened(recipe(tmp_path, Source(path="rows.jsonl", limit=1)), 12)
    next(one.rows())
    assert "split" not in one.facts()


# Bad rows


def test_a_bad_row_in_the_middle_ends_the_run_and_is_named(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 20)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"text": 3}\n{"text": "x"}\n')
    found = opened(recipe(tmp_path)).rows()
    assert len(list(islice(found, 16))) == 16  # the first block has none
    with pytest.raises(DataError, match=rf"^{tmp_path}/rows\.jsonl:21: text is a number, not text\n"):
        next(found)


def test_a_bad_last_row_ends_the_run_too(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 20)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("x\n")
    assert refused(recipe(tmp_path)).message.startswith(f"{tmp_path}/rows.jsonl:21: not JSON")


def test_bad_rows_that_may_be_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [{"text": str(n)} if n % 5 else {"text": n} for n in range(20)]
    tiny.jsonl(tmp_path / "rows.jsonl", rows)
    made = recipe(tmp_path, on_bad_row="drop", max_bad_fraction=0.25)
    assert set(texts(made, 64)) == {str(n) for n in range(20) if n % 5}
    found = opened(made)
    list(islice(found.rows(), 16))
    assert found.facts()["dropped"] == {"wrong type": 4}


def test_too_many_bad_rows_end_the_run_once_enough_were_seen(tmp_path: Path) -> None:
    tiny.jsonl(tmp_path / "rows.jsonl", [{"text": str(n)} if n % 2 else {"text": n} for n in range(100)])
    message = refused(recipe(tmp_path, on_bad_row="drop", max_bad_fraction=0.4)).message
    assert message.startswith("10 of 20 rows are bad (50.0%; 10 wrong type), more than data.max_bad_fraction 0.4")


def test_bad_rows_that_come_late_end_the_run_where_they_are_too_many(tmp_path: Path) -> None:
    tiny.jsonl(tmp_path / "rows.jsonl", [{"text": str(n)} if n < 64 or n % 2 else {"text": n} for n in range(400)])
    found = opened(recipe(tmp_path, on_bad_row="drop", max_bad_fraction=0.25)).rows()
    assert len(list(islice(found, 64))) == 64
    with pytest.raises(DataError, match="rows are bad"):
        list(islice(found, 300))


def test_rows_that_the_template_refuses_are_bad_rows(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    bad = {"messages": [{"role": "system", "content": "s"}, *good["messages"]]}
    path = tiny.jsonl(tmp_path / "rows.jsonl", [good, bad, good, good])
    gemma: dict[str, Any] = {"template": kinds.GEMMA}
    assert refused(recipe(tmp_path), **gemma).message.startswith(f"{path}:2: the chat template refuses")
    lenient = recipe(tmp_path, on_bad_row="drop", max_bad_fraction=0.25)
    found = opened(lenient, template=kinds.GEMMA)
    list(islice(found.rows(), 12))
    facts = found.facts()
    assert (facts["read"], facts["kept"], facts["dropped"]) == (16, 12, {"refused by the chat template": 4})
    strict = recipe(tmp_path, on_bad_row="drop", max_bad_fraction=0.2)
    assert "rows are bad" in refused(strict, **gemma).message


# Streams with nothing in them


def test_no_row_left_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 5)
    path = tmp_path / "rows.jsonl"
    filtered = recipe(tmp_path, Source(path="rows.jsonl", filter="text == 'x'"))
    assert str(refused(filtered)) == f"{path}: no rows\nhint: a filter may leave out all"
    assert refused(recipe(tmp_path, eval=EvalSource(count=5))).message == f"{path}: no rows but the 5 held out"
    assert refused(recipe(tmp_path, eval=EvalSource(count=9))).message == f"{path}: no rows but the 9 held out"
    tiny.jsonl(path, [{"text": "x" * 50}])
    message = "none of 16 rows in a line is left: 16 longer than max_length"
    assert refused(recipe(tmp_path), longest=20).message == message
    path.write_text("")
    assert refused(recipe(tmp_path)).message == f"{path}: no rows"
    path.write_text("x\n" * 30)
    assert "30 of 30 rows are bad" in refused(recipe(tmp_path, on_bad_row="drop")).message
    assert refused(recipe(tmp_path, on_bad_row="drop", max_bad_fraction=1.0)).message == f"{path}: no rows"


def test_settings_for_conversations_have_no_effect_without_any(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 5)
    with pytest.raises(UsageError, match=r"^data\.learn: has no effect on rows that are no conversations$"):
        texts(recipe(tmp_path, learn="last"), 1)


def test_a_look_at_a_stream_takes_each_source_s_first_rows_once(tmp_path: Path) -> None:
    one, two = lines(tmp_path / "a.jsonl", 3, "a"), lines(tmp_path / "b.jsonl", 50, "b")
    side = stream.first(recipe(tmp_path, one, two, eval=EvalSource(count=1)), print)
    assert [(each.source, each.place.line) for each in side.examples] == [
        *((0, n) for n in (2, 3)), *((1, n) for n in range(1, 9))
    ]  # fmt: skip
    assert side.held_out == 1


# Memory


@pytest.mark.slow
@pytest.mark.every
def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifteen times the rows, read to their end, take no more memory than some."""
    monkeypatch.setattr(stream, "BLOCK", 64)
    peaks = []
    for count in (300, 4500):
        tiny.jsonl(tmp_path / "rows.jsonl", [{"text": f"{n:05}" + "x" * 30} for n in range(count)])
        found = opened(recipe(tmp_path)).rows()
        list(islice(found, 64))  # what is loaded once is there
        tracemalloc.start()
        assert sum(1 for _ in islice(found, count)) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_no_file_stays_open_for_every_time_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens: list[Any] = []
    real = files.open_binary

    def kept(where: str) -> Any:
        opens.append(real(where))
        return opens[-1]

    monkeypatch.setattr(files, "open_binary", kept)
    lines(tmp_path / "rows.jsonl", 4)
    texts(recipe(tmp_path), 64)
    assert len(opens) >= 16
    assert sum(not file.closed for file in opens) <= 1


# Steps


def endless() -> Iterator[Encoded]:
    number = 0
    while True:
        yield Encoded((number,), (1.0,))
        number += 1


def test_steps_are_the_same_whether_asked_for_one_by_one_or_skipped_to() -> None:
    one_by_one = Sequential(endless, 3)
    each = [[row.ids[0] for row in one_by_one.take(step)] for step in range(6)]
    assert each == [[3 * step, 3 * step + 1, 3 * step + 2] for step in range(6)]
    skipped = Sequential(endless, 3)
    assert [row.ids[0] for row in skipped.take(5)] == each[5]


def test_the_last_few_steps_may_be_asked_for_again() -> None:
    steps = Sequential(endless, 2, kept=2)
    found = [steps.take(step) for step in range(5)]
    assert [steps.take(step) for step in (3, 4, 3)] == [found[3], found[4], found[3]]
    with pytest.raises(KeyError):
        steps.take(2)
