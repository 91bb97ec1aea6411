"""Rows read while training: sets larger than memory, in an order that depends on the recipe alone.

Sources are read from start to end, over and over, their rows mixed by weight. Some thousand examples at a time are
encoded and put into a random order that follows from the seed and the number of the block.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from peftctl.data import sources
from peftctl.data.encode import NOTHING_LEARNED, TOO_LONG, Encoding, Rows, encode, outcomes
from peftctl.data.order import order
from peftctl.data.sources import Note, Side, Sourced, Tally
from peftctl.errors import DataError
from peftctl.recipe.schema import Recipe
from peftctl.tasks import task_of
from peftctl.text.tokens import Encoded

BLOCK = 4096  # examples
JUDGED = 1000  # rows before the share of bad ones is judged
# The "epoch" whose order shuffles a block: no training epoch is numbered so.
BLOCKS = 2**33


def held_out(recipe: Recipe, encoding: Encoding, note: Note) -> Rows | None:
    """The held-out rows: of a source of their own, or the first of the stream, which it then leaves out."""
    side = sources.held_out_side(recipe, note)
    return encode(side, encoding, "held-out") if side else None


def first(recipe: Recipe, note: Note) -> Side:
    """The first rows of every source, a block in all, each once. Raises DataError."""
    data, counted = recipe.data, sources.tally(recipe.data)
    found: list[Sourced] = []
    share = max(1, BLOCK // len(data.train))
    for number, source in enumerate(data.train):
        where = sources.locate(recipe, source, note)
        examples = sources.examples(where, source, task_of(recipe.task), counted, streaming=True)
        skipped = _skipped(recipe, number)
        found += [replace(each, source=number) for each in islice(examples, skipped, skipped + share)]
    counted.settle()
    if not found and not counted.bad:
        held = f" but the {_skipped(recipe, 0)} held out" if _skipped(recipe, 0) else ""
        raise DataError(f"{', '.join(source.path for source in data.train)}: no rows{held}")
    sources.check_effects(data, [sourced.example for sourced in found])
    return Side(found, counted, _skipped(recipe, 0))


def _skipped(recipe: Recipe, number: int) -> int:
    """How many of a source's first rows are held out."""
    wanted = recipe.data.eval
    return wanted.count or 0 if wanted and wanted.path is None and number == 0 else 0


@dataclass
class Stream:
    """The training rows of a recipe, one after another without end; ``facts`` counts what has been read so far."""

    recipe: Recipe
    encoding: Encoding
    tally: Tally = field(init=False)
    dropped: Counter[str] = field(default_factory=Counter)
    parts: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.tally = sources.tally(self.recipe.data)

    def rows(self) -> Iterator[Encoded]:
        """The rows in their order. Raises DataError where one is bad, or too many are, or none is left."""
        for block in self.blocks():
            yield from block

    def blocks(self) -> Iterator[list[Encoded]]:
        """The rows some thousand examples at a time, each block in the random order of its own."""
        lost = 0
        for number, block in enumerate(self._blocks()):
            if number == 0:
                sources.check_effects(self.recipe.data, [sourced.example for sourced in block])
            encoded = [row for found in self._outcomes(block) for row in found]
            if len(block) < BLOCK:
                self.tally.settle()
            lost = 0 if encoded else lost + len(block)
            if lost >= BLOCK:
                reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
                raise DataError(f"none of {lost:,} rows in a line is left: {reasons}")
            if not encoded:
                continue
            self.counts.update(rows=len(encoded), tokens=sum(map(len, encoded)))
            self.counts.update(supervised_tokens=sum(row.supervised for row in encoded))
            self.counts["longest"] = max(self.counts["longest"], *(len(row) for row in encoded))
            yield [encoded[index] for index in order(self.recipe.train.seed, BLOCKS + number, len(encoded))]

    def facts(self) -> dict[str, Any]:
        """What the log and the manifest say, as Rows.facts; of rows that were read more than once, each time."""
        dropped = self.dropped + self.tally.bad
        rare = {
            "filtered": self.tally.filtered,
            "held_out": self.counts["held_out"],
            "truncated": self.counts["truncated"],
            "split": self.counts["split"],
            "dropped_parts": dict(self.parts),
        }
        return {
            "read": self.tally.read,
            "kept": self.counts["kept"],
            "dropped": dict(dropped),
            **{name: self.counts[name] for name in ("rows", "tokens", "supervised_tokens", "longest")},
            **{name: value for name, value in rare.items() if value},
        }

    def _outcomes(self, block: Sequence[Sourced]) -> Iterator[Sequence[Encoded]]:
        for sourced, outcome in zip(block, outcomes(block, self.encoding), strict=True):
            if outcome.fault:
                self.tally.fault(sourced.place, outcome.fault)
                self._judge()
            elif not outcome.rows:
                self.dropped[TOO_LONG if TOO_LONG in outcome.parts else NOTHING_LEARNED] += 1
            else:
                self.parts.update(outcome.parts)
                self.counts.update(kept=1, truncated=outcome.cut, split=outcome.split)
                yield outcome.rows

    def _judge(self) -> None:
        """Raises DataError at the first bad row where none may be, at too many of some thousand elsewhere."""
        if self.tally.bad and (self.tally.most_bad is None or self.tally.read >= JUDGED):
            self.tally.settle()

    def _blocks(self) -> Iterator[list[Sourced]]:
        """Examples of all sources in proportion to their weights, without end: the one that is most behind is next.

        A block ends early where every source has been read to its end once more: what is small is shuffled whole.
        """
        weights = [source.weight for source in self.recipe.data.train]
        endless = [self._over_and_over(number) for number in range(len(weights))]
        taken, passes = [0] * len(weights), [0] * len(weights)
        block: list[Sourced] = []
        while True:
            done = min(passes)
            number = min(range(len(weights)), key=lambda each: ((taken[each] + 1) / weights[each], each))
            example = next(endless[number])
            if example is None:
                passes[number] += 1
            else:
                taken[number] += 1
                block.append(example)
            if len(block) == BLOCK or (block and min(passes) > done):
                yield block
                block = []

    def _over_and_over(self, number: int) -> Iterator[Sourced | None]:
        """The source's examples, and None at each end of it."""
        source = self.recipe.data.train[number]
        skipped = _skipped(self.recipe, number)
        where, task = sources.locate(self.recipe, source), task_of(self.recipe.task)
        while True:
            some = False
            found = sources.examples(where, source, task, self.tally, streaming=True)
            for at, sourced in enumerate(found):
                self._judge()
                if at < skipped:
                    self.counts["held_out"] += 1
                    continue
                some = True
                yield replace(sourced, source=number)
            if not some:
                self.tally.settle()
                held = f" but the {skipped} held out" if skipped else ""
                raise DataError(f"{where.name}: no rows{held}", "a filter may leave out all" if source.filter else "")
            self.tally.settle()  # all of it has been seen, however little that is
            yield None


@dataclass
class Sequential:
    """An endless stream by position, for who asks for steps in order; the last few are kept to be asked for again."""

    rows: Callable[[], Iterator[Encoded]]
    batch_size: int
    kept: int = 4

    def __post_init__(self) -> None:
        self._rows, self._next = self.rows(), 0
        self._last: deque[tuple[int, list[Encoded]]] = deque(maxlen=self.kept)

    def take(self, step: int) -> list[Encoded]:
        """The rows of ``step``. Raises KeyError where it is before those that are kept."""
        if step < self._next:
            return dict(self._last)[step]
        while self._next <= step:
            self._last.append((self._next, list(islice(self._rows, self.batch_size))))
            self._next += 1
        return self._last[-1][1]
