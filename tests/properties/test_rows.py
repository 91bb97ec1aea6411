"""From written files to the batches of steps: nothing is lost or doubled but what the counters say."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from peftctl.data import prepare, sources, stream
from peftctl.data.batches import plan
from peftctl.data.encode import Encoding, Rows, encode_some
from peftctl.data.stream import Stream
from peftctl.data.supply import Planned
from peftctl.errors import DataError
from peftctl.example import Conversation, Segments
from peftctl.methods.lora import LoraSettings
from peftctl.recipe import Recipe
from peftctl.recipe.schema import DataSettings, EvalSource, ModelSettings, Source, TrainSettings
from peftctl.tasks import TASKS, Layout
from peftctl.text.tokens import Encoded
from tests import tiny
from tests.unit import kinds

TASK = TASKS["causal_lm"]
TOKENIZER = tiny.tokenizer()
END = "<|im_end|>"
LONGEST = 64
# Kinds of lines, and the reason under which those that are no rows are counted.
BAD = {"broken": "broken JSON", "list": "not an object", "empty turn": "says nothing", "order": "roles out of order"}
KINDS = ("chat", "chat", "two turns", "long", "unlearned", "filtered", *BAD)

words = st.text("abcé 日", min_size=1, max_size=6).filter(str.strip)


@st.composite
def lines(draw: st.DrawFn) -> tuple[str, str]:
    """A kind of line, and a line of that kind."""
    kind = draw(st.sampled_from(KINDS))
    turns: list[dict[str, Any]] = [{"role": role, "content": draw(words)} for role in ("user", "assistant")]
    user, assistant = turns
    row: Any = {"messages": turns, "keep": True}
    if kind == "two turns":
        more = [{"role": "user", "content": draw(words)}, {"role": "assistant", "content": draw(words)}]
        row["messages"] += [*more]
    elif kind == "long":
        where = draw(st.sampled_from([user, assistant]))
        where["content"] += "x" * draw(st.integers(LONGEST, 3 * LONGEST))
    elif kind == "unlearned":
        assistant["weight"] = 0
    elif kind == "filtered":
        row["keep"] = False
    elif kind == "list":
        row = [row]
    elif kind == "empty turn":
        assistant["content"] = " "
    elif kind == "order":
        row["messages"] = [assistant, user]
    line = json.dumps(row, ensure_ascii=False)
    return kind, line[:-3] if kind == "broken" else line


files = st.lists(st.lists(lines(), min_size=4, max_size=12), min_size=1, max_size=3)
weights = st.sampled_from([1.0, 1.0, 2.0, 0.5, 1.5, 0.25])
ways = st.sampled_from(["drop", "truncate_end", "truncate_start", "split"])
held_out = st.none() | st.builds(EvalSource, count=st.integers(1, 3))
seeds = st.integers(0, 2**32 - 1)


@dataclass(frozen=True)
class Case:
    """A recipe over files that were written, and how its rows are encoded."""

    recipe: Recipe
    encoding: Encoding


@contextmanager
def written(files: list[list[tuple[str, str]]], of: list[float], seed: int, **data: Any) -> Iterator[Case]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = []
        for number, content in enumerate(files):
            (folder / f"{number}.jsonl").write_text("".join(f"{line}\n" for _, line in content), "utf-8")
            source = Source(path=f"{number}.jsonl", format="messages", filter="keep", weight=of[number])
            train.append(source)
        chosen = DataSettings(train=tuple(train), on_bad_row="drop", max_bad_fraction=1.0, **data)
        recipe = Recipe(
            ModelSettings(name="m"), chosen, LoraSettings(), "out", train=TrainSettings(seed=seed), folder=folder
        )
        yield Case(recipe, Encoding(TASK, TOKENIZER, LONGEST, overlong=chosen.overlong or TASK.overlong))


def rows_of(case: Case) -> tuple[Rows, Rows | None] | None:
    """The rows, or None where the files hold none to learn."""
    try:
        made = prepare.prepare(case.recipe, case.encoding, None, print)
    except DataError as error:
        if not any(said in error.message for said in ("rows is left", "no rows", "are to be held out")):
            raise
        return None
    return made.train, made.eval


def adds_up(facts: dict[str, Any]) -> bool:
    others = facts.get("filtered", 0) + facts.get("held_out", 0) + facts["kept"] + sum(facts["dropped"].values())
    return bool(facts["read"] == others)


@given(files, st.lists(weights, min_size=3, max_size=3), ways, held_out, seeds)
@settings(max_examples=60, deadline=None)
def test_every_line_is_a_row_or_counted(
    files: list[list[tuple[str, str]]], of: list[float], way: str, apart: EvalSource | None, seed: int
) -> None:
    with written(files, of, seed, overlong=way, eval=apart) as case:
        made = rows_of(case)
        assume(made is not None)
        assert made is not None
        train, evaluated = made
        kinds_read = Counter(kind for content in files for kind, _ in content)
        facts = train.facts()
        assert facts["read"] == kinds_read.total()
        assert facts.get("filtered", 0) == kinds_read["filtered"]
        assert {reason: n for reason, n in facts["dropped"].items() if reason in BAD.values()} == {
            reason: kinds_read[kind] for kind, reason in BAD.items() if kinds_read[kind]
        }
        assert adds_up(facts)
        assert facts.get("held_out", 0) == (apart.count if apart else 0)
        if evaluated is not None:
            assert adds_up(evaluated.facts())
            assert evaluated.facts()["read"] == facts["held_out"]
            assert {row.place for row in train.sources}.isdisjoint(row.place for row in evaluated.sources)
        if way == "drop":
            assert facts["kept"] == facts["rows"]
            assert facts["longest"] <= LONGEST


@given(files, st.lists(weights, min_size=3, max_size=3), ways, seeds, st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_every_row_is_taken_as_often_an_epoch_as_its_weight_says(
    files: list[list[tuple[str, str]]], of: list[float], way: str, seed: int, batch: int
) -> None:
    with written(files, of, seed, overlong=way) as case:
        made = rows_of(case)
        assume(made is not None)
        assert made is not None
        rows = made[0]
        examples = rows.read_again()
        supply = Planned(rows, plan(rows.per_epoch, batch, seed, epochs=2, max_steps=None))
        taken = Counter(row for step in range(supply.steps) for row in supply.rows(step))
        # Rows may be equal, so they are counted by what they hold.
        least, most = Counter[Encoded](), Counter[Encoded]()
        for row, number in zip(rows.encoded, rows.of, strict=True):
            weight = of[examples[number].source]
            least[row] += 2 * int(weight)
            most[row] += 2 * (int(weight) + (weight % 1 > 0))
        assert set(taken) <= set(most)
        assert all(least[row] <= taken[row] <= most[row] for row in most)
        assert taken.total() == 2 * rows.per_epoch
        by_source = np.bincount([examples[number].source for number in rows.of], minlength=len(files))
        exact = [count * weight for count, weight in zip(by_source, of, strict=False)]
        assert abs(rows.per_epoch - sum(exact)) <= sum(1 for weight in of[: len(files)] if weight % 1)


def learned_of(example: Conversation | Segments) -> list[str]:
    assert isinstance(example, Conversation)
    return [f"{turn.content}{END}" for turn in example.turns if turn.weight]


@given(files, seeds, st.sampled_from(["assistant", "all"]))
@settings(max_examples=60, deadline=None)
def test_labels_are_the_ids_just_where_they_are_learned_and_decode_to_the_assistant_s_text(
    files: list[list[tuple[str, str]]], seed: int, learn: str
) -> None:
    with written(files, [1.0] * 3, seed) as case:
        made = rows_of(replace(case, encoding=replace(case.encoding, learn=learn)))
        assume(made is not None)
        assert made is not None
        rows = made[0]
        for sourced, row in zip(rows.sources, rows.encoded, strict=True):
            assert isinstance(sourced.example, Conversation)
            found = kinds.learned_texts(row, TOKENIZER)
            if learn == "all":  # all but the answers that say they are not to be learned
                text, at = kinds.decode(TOKENIZER, row.ids), 0
                for turn in sourced.example.turns:
                    said = f"{turn.role}\n{turn.content}{END}"
                    at = text.index(said, at) + len(turn.role) + 1
                    if turn.role == "assistant" and not turn.weight:
                        text = text[:at] + text[at + len(turn.content) + len(END) :]
                assert "".join(found) == text
            else:
                assert found == learned_of(sourced.example)
        supply = Planned(rows, plan(rows.per_epoch, 4, seed, epochs=1, max_steps=None))
        for step in range(supply.steps):
            batch = supply.rows(step)
            for layout in (Layout(0), Layout(0, True), Layout(0, packed=True), Layout(0, True, True, 16)):
                assert labels(batch, layout) == [
                    (index, at, row.ids[at])
                    for index, row in enumerate(batch)
                    for at in range(1, len(row))
                    if row.weights[at]
                ]


def labels(rows: list[Encoded], layout: Layout) -> list[tuple[int, int, int]]:
    """For every target of a batch its row, its place in that row, and its id, from what the loss is given."""
    batch = TASK.collate(rows, layout)
    ids, columns = batch["inputs"]["input_ids"], batch["columns"]
    found = []
    starts = np.cumsum([0, *(len(row) for row in rows)])
    for at, target, owner in zip(batch["at"], batch["targets"], batch["owners"], strict=True):
        line, column = divmod(int(at), len(columns))
        place = int(columns[column]) + 1
        assert ids[line, place] == target
        row = int(owner) if layout.packed else line
        assert row == owner
        found.append((row, place - int(starts[row]) if layout.packed else place, int(target)))
    return sorted(found)


@given(files, ways, seeds)
@settings(max_examples=40, deadline=None)
def test_what_is_cut_learns_only_what_was_learned_before(
    files: list[list[tuple[str, str]]], way: str, seed: int
) -> None:
    """Each target of a part is a target of its row; with split every one is there, and once."""
    with written(files, [1.0] * 3, seed, overlong=way) as case:
        made = rows_of(case)
        assume(made is not None)
        assert made is not None
        rows = made[0]
        examples = rows.read_again()
        for number in np.unique(rows.of):
            (whole,) = encode_some([examples[number].example], case.encoding)
            assert isinstance(whole, list)
            wanted = Counter(target for row in whole for target in targets(row))
            parts = [rows.encoded[int(at)] for at in np.flatnonzero(rows.of == number)]
            found = Counter(target for part in parts for target in targets(part))
            assert found <= wanted
            if way == "split" or all(len(row) <= LONGEST for row in whole):
                assert found == wanted


def targets(row: Encoded) -> list[int]:
    return [number for number, weight in zip(row.ids[1:], row.weights[1:], strict=True) if weight]


@given(files, ways, held_out, seeds)
@settings(max_examples=40, deadline=None)
def test_a_stream_counts_every_line_it_read(
    files: list[list[tuple[str, str]]], way: str, apart: EvalSource | None, seed: int
) -> None:
    with written(files, [1.0] * 3, seed, overlong=way, eval=apart, streaming=True) as case:
        block, stream.BLOCK = stream.BLOCK, 8
        try:
            found = Stream(case.recipe, case.encoding)
            taken = list(islice(found.rows(), 30))
        except DataError:
            reject()
        finally:
            stream.BLOCK = block
        facts = found.facts()
        assert adds_up(facts)
        assert facts["rows"] >= len(taken) == 30
        assert max(map(len, taken)) <= LONGEST
        assert all(row.supervised for row in taken)
        if apart is not None and (side := sources.held_out_side(case.recipe)):
            assert len(side.examples) == apart.count
