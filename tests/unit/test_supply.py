"""The rows of every step, planned or streamed, and what is said of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from peftctl.data import sources, stream
from peftctl.data.encode import Encoding
from peftctl.data.prepare import Opened
from peftctl.data.supply import Planned, Streamed, Supply, supplied
from peftctl.errors import DataError
from peftctl.methods.lora import LoraSettings
from peftctl.recipe import Recipe
from peftctl.recipe.schema import DataSettings, EvalSource, ModelSettings, Source, TrainSettings
from peftctl.tasks import TASKS
from peftctl.text.tokens import Encoded
from tests import tiny
from tests.unit import kinds


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", 16)


def lines(path: Path, count: int, prefix: str = "") -> Source:
    tiny.jsonl(path, [{"text": f"{prefix}{n}"} for n in range(count)])
    return Source(path=path.name)


def given(
    folder: Path, *train: Source, training: dict[str, Any] | None = None, **data: Any
) -> tuple[Supply, list[str], Any]:
    """What supplies the rows of a recipe, the notes that were made, and the held-out rows."""
    settings = DataSettings(train=train or (Source(path="rows.jsonl"),), **data)
    chosen = TrainSettings(**({"epochs": 2.0, "batch_size": 4} | (training or {})))
    recipe = Recipe(ModelSettings(name="m"), settings, LoraSettings(), "out", train=chosen, folder=folder)
    encoding = Encoding(TASKS["causal_lm"], tiny.tokenizer(), 100, settings.learn, settings.overlong)
    heard: list[str] = []
    base: Any = None
    found, held_out = supplied(Opened(sources.resolve(recipe), base, None, encoding, None), heard.append)
    return found, heard, held_out


def texts(rows: list[Encoded]) -> list[str]:
    return [kinds.decode(tiny.tokenizer(), row.ids).removesuffix("<|im_end|>") for row in rows]


def run(found: Supply) -> list[str]:
    return [text for step in range(found.steps) for text in texts(found.rows(step))]


def test_an_epoch_takes_every_row_once(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 10)
    found, heard, held_out = given(tmp_path)
    assert isinstance(found, Planned)
    assert found.steps == 5
    assert Counter(run(found)) == {str(n): 2 for n in range(10)}
    assert found.epoch(5) == 2.0
    assert (heard, held_out) == ([], None)


def test_an_epoch_takes_rows_as_often_as_their_source_s_weight_says(tmp_path: Path) -> None:
    sources_given = [
        lines(tmp_path / f"{prefix}.jsonl", 8, prefix).model_copy(update={"weight": weight})
        for prefix, weight in (("a", 1.0), ("b", 2.0), ("c", 0.5), ("d", 1.5))
    ]
    found, _, _ = given(tmp_path, *sources_given, training={"epochs": 1.0})
    often = Counter(run(found))
    by_source = {prefix: [often[f"{prefix}{n}"] for n in range(8)] for prefix in "abcd"}
    assert by_source["a"] == [1] * 8
    assert by_source["b"] == [2] * 8
    assert sorted(by_source["c"]) == [0] * 4 + [1] * 4
    assert sorted(by_source["d"]) == [1] * 4 + [2] * 4
    assert found.steps == 10
    assert found.facts()["rows_an_epoch"] == 40
    assert run(given(tmp_path, *sources_given, training={"epochs": 1.0})[0]) == run(found)


def test_held_out_rows_are_in_no_epoch(tmp_path: Path) -> None:
    two = lines(tmp_path / "b.jsonl", 6, "b").model_copy(update={"weight": 2.5})
    found, _, held_out = given(tmp_path, lines(tmp_path / "a.jsonl", 10, "a"), two, eval=EvalSource(count=5))
    kept_back = texts(list(held_out.encoded))
    assert len(kept_back) == 5
    taken = set(run(found))
    assert taken.isdisjoint(kept_back)
    assert taken | set(kept_back) == {f"a{n}" for n in range(10)} | {f"b{n}" for n in range(6)}
    assert found.facts()["held_out"] == 5


def test_a_batch_larger_than_the_data_is_said(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 3)
    _, heard, _ = given(tmp_path)
    assert heard == ["train.batch_size 4 is more than the 3 rows: a step takes rows twice or more"]


def test_the_shortest_rows_are_known(tmp_path: Path) -> None:
    tiny.jsonl(tmp_path / "rows.jsonl", [{"text": "x" * n} for n in (5, 2, 9, 1, 2)])
    ways: list[dict[str, Any]] = [{}, {"streaming": True, "training": {"epochs": None, "max_steps": 3}}]
    for settings in ways:
        found, _, _ = given(tmp_path, **settings)
        assert len(found.shortest(3)[0]) == 2
        assert [len(row) for row in found.shortest(100)] == sorted(len(row) for row in found.shortest(100))
    planned, _, _ = given(tmp_path)
    assert texts(planned.shortest(3)) == ["x", "xx", "xx"]


def test_a_second_supply_has_its_rows_from_the_cache_and_says_so(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 10)
    first, second = given(tmp_path)[0], given(tmp_path)[0]
    assert (first.cached, second.cached) == (False, True)
    assert run(first) == run(second)
    assert first.facts() == second.facts() == first.known()


STREAMED: dict[str, Any] = {"streaming": True, "training": {"epochs": None, "max_steps": 30}}


def test_a_stream_s_steps_are_the_same_asked_for_in_a_row_or_after_skipping(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 50)
    found, _, _ = given(tmp_path, **STREAMED)
    assert isinstance(found, Streamed)
    steps = [texts(found.rows(step)) for step in range(30)]
    assert all(len(step) == 4 for step in steps)
    for at in (0, 7, 29):
        assert texts(given(tmp_path, **STREAMED)[0].rows(at)) == steps[at]
    assert (found.steps, found.epoch(5), found.cached) == (30, None, False)


def test_looking_ahead_takes_no_row_from_a_stream(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 50)
    found, _, _ = given(tmp_path, **STREAMED)
    assert found.facts()["read"] == 0
    assert found.known()["rows"] == 16
    assert sorted(texts(found.shortest(16))) == sorted(str(n) for n in range(16))
    assert sorted(text for step in range(4) for text in texts(found.rows(step))) == sorted(str(n) for n in range(16))
    assert found.facts() == found.known()


def test_what_is_wrong_with_a_stream_s_first_rows_is_said_before_any_is_taken(tmp_path: Path) -> None:
    tiny.jsonl(tmp_path / "rows.jsonl", [{"text": "a"}, {"text": 3}, {"text": "b"}])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: text is a number"):
        given(tmp_path, **STREAMED)


def test_a_stream_holds_out_its_first_rows(tmp_path: Path) -> None:
    lines(tmp_path / "rows.jsonl", 20)
    found, _, held_out = given(tmp_path, **STREAMED, eval=EvalSource(count=6))
    assert texts(list(held_out.encoded)) == [str(n) for n in range(6)]
    assert set(run(found)) == {str(n) for n in range(6, 20)}
    facts = found.facts()
    assert facts["read"] == facts["kept"] + facts["held_out"]
