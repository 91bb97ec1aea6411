"""Examples to encoded rows, with every row accounted for."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from peftctl.data.order import order
from peftctl.data.sources import SHOWN_FAULTS, Sourced, check_pin, read_examples
from peftctl.data.store import Stored, store
from peftctl.errors import DataError
from peftctl.example import RowFault
from peftctl.recipe.schema import Recipe
from peftctl.tasks import Task
from peftctl.text.tokens import Encoded

TOO_LONG = "longer than max_length"
NOTHING_LEARNED = "nothing to learn"
CHUNK = 256
MOST_AT_ONCE = 4  # tokenizers run in parallel, what is done around them in Python does not


@dataclass(frozen=True)
class Rows:
    """Encoded rows, their places, the examples they came from, and what became of the rest."""

    encoded: Stored
    sources: tuple[Sourced, ...]
    read: int
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.encoded)

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
        """What the log and the manifest say of these rows."""
        return {
            "read": self.read,
            "kept": len(self),
            "dropped": dict(self.dropped),
            "tokens": self.tokens,
            "supervised_tokens": self.supervised_tokens,
            "longest": self.longest,
        }


def read(recipe: Recipe) -> tuple[list[Sourced], list[Sourced]]:
    """The recipe's training and held-out examples. Raises DataError; no tokenizer or model is needed."""
    task = recipe.task.name
    train: list[Sourced] = []
    for source in recipe.data.train:
        check_pin(recipe.path(source.path), source.sha256)
        train += read_examples(recipe.path(source.path), source.format, source.limit, task)
    held_out = recipe.data.eval
    if held_out is None:
        return train, []
    if held_out.path is not None:
        check_pin(recipe.path(held_out.path), held_out.sha256)
        return train, read_examples(recipe.path(held_out.path), held_out.format, held_out.limit, task)
    count = held_out.count or max(1, round((held_out.split or 0) * len(train)))
    if count >= len(train):
        raise DataError(
            f"data.eval: {count} rows are to be held out of {len(train)}, so none would be left to train on"
        )
    taken = set(order(recipe.train.seed, HELD_OUT, len(train))[:count].tolist())
    kept = [row for index, row in enumerate(train) if index not in taken]
    return kept, [row for index, row in enumerate(train) if index in taken]


# The "epoch" whose order says which rows are held out: no training epoch is numbered so.
HELD_OUT = 2**32 - 1


def encode(
    examples: Sequence[Sourced], task: Task, tokenizer: Any, max_length: int, name: str, learn: str = "assistant"
) -> Rows:
    """The examples as ids. Rows too long or with nothing to learn are dropped and counted.

    Raises DataError where a row cannot be encoded at all, or where none is left.
    """
    kept: list[Sourced] = []
    dropped: Counter[str] = Counter()
    faults: list[str] = []

    def rows() -> Iterator[Encoded]:
        for sourced, row in zip(examples, _encoded(examples, task, tokenizer, learn), strict=True):
            if isinstance(row, RowFault):
                faults.append(f"{sourced.place}: {row}")
            elif len(row) > max_length:
                dropped[TOO_LONG] += 1
            elif row.supervised == 0:
                dropped[NOTHING_LEARNED] += 1
            else:
                kept.append(sourced)
                yield row

    encoded = store(rows())
    if faults:
        more = f"\n... and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        raise DataError("\n".join(faults[:SHOWN_FAULTS]) + more)
    if not kept:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise DataError(
            f"none of the {len(examples)} {name} rows is left: {reasons}",
            hint=f"data.max_length is {max_length}" if dropped[TOO_LONG] else "no row has a turn or text to learn",
        )
    return Rows(encoded, tuple(kept), len(examples), dict(dropped))


def _encoded(examples: Sequence[Sourced], task: Task, tokenizer: Any, learn: str) -> Iterator[Encoded | RowFault]:
    """Every example encoded, in order; some hundred at a time, and as many at once as there are cores to do it."""
    accepts = ", ".join(kind.__name__ for kind in task.accepts)

    def chunk(start: int) -> Sequence[Encoded | RowFault]:
        part = [sourced.example for sourced in examples[start : start + CHUNK]]
        if wrong := [example for example in part if not isinstance(example, task.accepts)]:
            fault = RowFault(f"a {type(wrong[0]).__name__}, where {task.name} learns from {accepts}")
            right = iter(task.encode([e for e in part if isinstance(e, task.accepts)], tokenizer, learn))
            return [next(right) if isinstance(example, task.accepts) else fault for example in part]
        return task.encode(part, tokenizer, learn)

    with ThreadPoolExecutor(min(MOST_AT_ONCE, os.cpu_count() or 1), "encode") as pool:
        for made in pool.map(chunk, range(0, len(examples), CHUNK)):
            yield from made
