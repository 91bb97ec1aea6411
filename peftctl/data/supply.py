"""The rows of every optimizer step, whether all are in memory or they are read while training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from peftctl.data import stream
from peftctl.data.batches import Plan, plan
from peftctl.data.encode import Rows
from peftctl.data.prepare import Opened, prepare
from peftctl.data.sources import Note
from peftctl.data.stream import Sequential, Stream
from peftctl.errors import Place
from peftctl.text.tokens import Encoded


class Supply(Protocol):
    """Gives the training loop its rows by step."""

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""

    def rows(self, step: int) -> list[Encoded]:
        """The rows of ``step`` (from 0), a function of the recipe alone."""

    def places(self, step: int) -> list[Place] | None:
        """The file and line (or row) of each of the step's rows; None where rows are not numbered."""

    def epoch(self, step: int) -> float | None:
        """How many epochs are done after ``step`` steps; None where rows are not counted."""

    def shortest(self, count: int) -> list[Encoded]:
        """The shortest rows that are known, to try a model on."""

    def facts(self) -> dict[str, Any]:
        """What the log and the manifest say of the rows."""

    def known(self) -> dict[str, Any]:
        """The same of the rows that are known before training."""

    @property
    def cached(self) -> bool:
        """Whether the rows came from the cache."""


@dataclass(frozen=True)
class Planned:
    """Rows in memory, taken by a plan."""

    data: Rows
    plan: Plan
    cached: bool = False

    @property
    def steps(self) -> int:
        return self.plan.steps

    def rows(self, step: int) -> list[Encoded]:
        return [self.data.encoded[self.data.at(position)] for position in self.plan.indices(step)]

    def places(self, step: int) -> list[Place] | None:
        examples = self.data.read_again()
        return [examples[self.data.of[self.data.at(position)]].place for position in self.plan.indices(step)]

    def epoch(self, step: int) -> float | None:
        return self.plan.epoch(step)

    def shortest(self, count: int) -> list[Encoded]:
        encoded = self.data.encoded
        return [encoded[int(row)] for row in encoded.lengths.argsort(kind="stable")[:count]]

    def facts(self) -> dict[str, Any]:
        return self.data.facts()

    def known(self) -> dict[str, Any]:
        return self.data.facts()


@dataclass(frozen=True)
class Streamed:
    """Rows of a stream, ``batch_size`` a step. The first block is read at once: what is wrong there is said early."""

    stream: Stream
    batch_size: int
    steps: int
    cached: bool = False
    first: Sequence[Encoded] = field(init=False)
    of_first: dict[str, Any] = field(init=False)
    in_order: Sequential = field(init=False)

    def __post_init__(self) -> None:
        ahead = Stream(self.stream.recipe, self.stream.encoding)
        object.__setattr__(self, "first", next(ahead.blocks()))
        object.__setattr__(self, "of_first", ahead.facts())
        object.__setattr__(self, "in_order", Sequential(self.stream.rows, self.batch_size))

    def rows(self, step: int) -> list[Encoded]:
        return self.in_order.take(step)

    def places(self, step: int) -> list[Place] | None:
        return None

    def epoch(self, step: int) -> float | None:
        return None

    def shortest(self, count: int) -> list[Encoded]:
        return sorted(self.first, key=len)[:count]

    def facts(self) -> dict[str, Any]:
        return self.stream.facts()

    def known(self) -> dict[str, Any]:
        return self.of_first


def supplied(opened: Opened, note: Note) -> tuple[Supply, Rows | None]:
    """The rows to learn from by step, and those to measure on. Raises DataError."""
    recipe, encoding, train = opened.recipe, opened.encoding, opened.recipe.train
    if recipe.data.streaming:
        held_out = stream.held_out(recipe, encoding, note)
        return Streamed(stream.Stream(recipe, encoding), train.batch_size, train.max_steps or 0), held_out
    data = prepare(recipe, encoding, opened.sides, note)
    count = data.train.per_epoch
    made = plan(count, train.batch_size, train.seed, epochs=train.epochs, max_steps=train.max_steps)
    if train.batch_size > count and made.total > count:
        note(f"train.batch_size {train.batch_size} is more than the {count} rows: a step takes rows twice or more")
    return Planned(data.train, made, data.cached), data.eval
