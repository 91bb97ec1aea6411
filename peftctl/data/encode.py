"""Examples to encoded rows, with every row accounted for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from peftctl.data.order import order
from peftctl.data.sources import Side, Sourced
from peftctl.data.store import Stored, store
from peftctl.errors import DataError
from peftctl.example import Example, RowFault
from peftctl.tasks import EncodedExample, Task
from peftctl.text import chat
from peftctl.text.tokens import Encoded

TOO_LONG = "longer than max_length"
NOTHING_LEARNED = "nothing to learn"
OTHER_TEMPLATE = "another template may write them: data.template takes a name, a Jinja file or Jinja text"
CHUNK = 256
MOST_AT_ONCE = 4  # tokenizers run in parallel, what is done around them in Python does not
# The "epoch" whose order says which rows a source of weight 0.5 gives: no training epoch is numbered so.
TAKEN = 2**32 - 2


@dataclass(frozen=True)
class Encoding:
    """How examples become rows."""

    task: Task
    tokenizer: Any
    max_length: int
    learn: str = "assistant"
    overlong: str = "drop"


@dataclass(frozen=True)
class Outcome:
    """What became of one example: its ``rows``, how many ``parts`` of it were left out and why, or its fault.

    ``cut``: rows that were truncated; ``split``: 1 where it was cut into several, else 0.
    """

    rows: Sequence[Encoded] = ()
    parts: Mapping[str, int] = field(default_factory=dict)
    cut: int = 0
    split: int = 0
    fault: RowFault | None = None


@dataclass(frozen=True)
class Rows:
    """Encoded rows, which example each is of, how often an epoch takes them, and what became of the rest.

    ``of`` [rows] is the number of a row's example in its side, ``epoch`` the rows of an epoch. What was read and is
    not among the rows was filtered, held out for the other side, or dropped for a reason; ``parts`` counts what was
    left out of examples of which something is left. ``read_again`` reads the side's examples anew.
    """

    encoded: Stored
    of: npt.NDArray[np.int32]
    read: int
    dropped: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, int] = field(default_factory=dict)
    filtered: int = 0
    held_out: int = 0
    truncated: int = 0
    split: int = 0
    epoch: npt.NDArray[np.int64] | None = None
    read_again: Callable[[], Sequence[Sourced]] = tuple

    def __len__(self) -> int:
        return len(self.encoded)

    @property
    def sources(self) -> list[Sourced]:
        """The examples that rows are of, each once however many rows it has, with their places."""
        examples = self.read_again()
        return [examples[number] for number in np.unique(self.of)]

    @property
    def per_epoch(self) -> int:
        """How many rows an epoch takes."""
        return len(self) if self.epoch is None else len(self.epoch)

    def at(self, position: int) -> int:
        """The row at a position of an epoch before its shuffling."""
        return position if self.epoch is None else int(self.epoch[position])

    @property
    def tokens(self) -> int:
        return len(self.encoded.ids)

    @property
    def supervised_tokens(self) -> int:
        return self.encoded.supervised

    @property
    def longest(self) -> int:
        return int(self.encoded.lengths.max())

    def facts(self) -> dict[str, Any]:
        """What the log and the manifest say of these rows: of the examples read, what became of them, and the rows."""
        rare = {
            "filtered": self.filtered,
            "held_out": self.held_out,
            "truncated": self.truncated,
            "split": self.split,
            "dropped_parts": dict(self.parts),
            "rows_an_epoch": self.per_epoch if self.epoch is not None else 0,
        }
        return {
            "read": self.read,
            "kept": len(np.unique(self.of)),
            "dropped": dict(self.dropped),
            "rows": len(self),
            "tokens": self.tokens,
            "supervised_tokens": self.supervised_tokens,
            "longest": self.longest,
            **{name: value for name, value in rare.items() if value},
        }


def encode(
    side: Side,
    encoding: Encoding,
    name: str,
    read_again: Callable[[], Sequence[Sourced]] | None = None,
) -> Rows:
    """The side's examples as ids. What is too long or has nothing to learn is dropped and counted.

    Raises DataError where a row cannot be encoded at all and the recipe says no bad row may be, or where none is left.
    """
    of: list[int] = []
    dropped: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    parts: Counter[str] = Counter()

    def rows() -> Iterator[Encoded]:
        for number, outcome in enumerate(outcomes(side.examples, encoding)):
            if outcome.fault:
                if outcome.fault.kind in (chat.REFUSED, chat.NOT_WRITTEN):
                    side.tally.hint = OTHER_TEMPLATE
                side.tally.fault(side.examples[number].place, outcome.fault)
            elif not outcome.rows:
                dropped[TOO_LONG if TOO_LONG in outcome.parts else NOTHING_LEARNED] += 1
            else:
                parts.update(outcome.parts)
                counts.update(truncated=outcome.cut, split=outcome.split)
                of.extend([number] * len(outcome.rows))
                yield from outcome.rows

    encoded = store(rows())
    side.tally.settle()
    dropped.update(side.tally.bad)
    if not of:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise DataError(
            f"none of the {side.tally.read - side.held_out} {name} rows is left: {reasons}",
            hint=f"data.max_length is {encoding.max_length}"
            if dropped[TOO_LONG]
            else "no row has a turn or text to learn",
        )
    return Rows(
        encoded,
        np.array(of, np.int32),
        side.tally.read,
        dict(dropped),
        dict(parts),
        side.tally.filtered,
        side.held_out,
        counts["truncated"],
        counts["split"],
        read_again=read_again or (lambda: side.examples),
    )


def epoch_of(
    rows: Rows, examples: Sequence[Sourced], weights: Sequence[float], seed: int
) -> npt.NDArray[np.int64] | None:
    """The rows of an epoch where sources have weights, in the order of the sources; None where all are taken once."""
    if all(weight == 1.0 for weight in weights):
        return None
    source = np.array([sourced.source for sourced in examples], np.int64)[rows.of]
    taken = []
    for number, weight in enumerate(weights):
        mine = np.flatnonzero(source == number)
        often, share = divmod(weight, 1.0)
        # A source that has rows gives at least one, however small its weight.
        count = max(round(share * len(mine)), int(weight < 1.0))
        some = np.sort(order(seed, TAKEN - number, len(mine))[:count])
        taken += [mine] * int(often) + [mine[some]]
    return np.concatenate(taken)


def outcomes(examples: Sequence[Sourced], encoding: Encoding) -> Iterator[Outcome]:
    """What becomes of every example, in order; some hundred at a time, and as many at once as there are cores."""

    def chunk(start: int) -> list[Outcome]:
        part = [sourced.example for sourced in examples[start : start + CHUNK]]
        return [outcome(made, encoding) for made in encode_some(part, encoding)]

    with ThreadPoolExecutor(min(MOST_AT_ONCE, os.cpu_count() or 1), "encode") as pool:
        for made in pool.map(chunk, range(0, len(examples), CHUNK)):
            yield from made


def encode_some(examples: Sequence[Example], encoding: Encoding) -> list[EncodedExample]:
    """Each example's rows at their full length, or why it has none."""
    task = encoding.task
    if all(isinstance(example, task.accepts) for example in examples):
        return task.encode(examples, encoding.tokenizer, encoding.learn)
    accepts = ", ".join(kind.__name__ for kind in task.accepts)
    right = iter(encode_some([e for e in examples if isinstance(e, task.accepts)], encoding))
    return [
        next(right)
        if isinstance(example, task.accepts)
        else RowFault(f"a {type(example).__name__}, where {task.name} learns from {accepts}", "not for this task")
        for example in examples
    ]


def outcome(made: EncodedExample, encoding: Encoding) -> Outcome:
    """What the recipe makes of an example's rows: those that are short enough, or cut, and have something to learn."""
    if isinstance(made, RowFault):
        return Outcome(fault=made)
    kept: list[Encoded] = []
    parts: Counter[str] = Counter()
    cut, split = 0, False
    for row in made:
        fitting = encoding.task.fit(row, encoding.max_length, encoding.overlong, encoding.tokenizer)
        learned = [part for part in fitting if part.learns]
        parts[TOO_LONG] += not fitting
        parts[NOTHING_LEARNED] += len(fitting) - len(learned)
        split |= len(fitting) > 1
        cut += len(fitting) == len(learned) == 1 and len(fitting[0]) < len(row)
        kept += learned
    return Outcome(kept, +parts, cut, int(split))
