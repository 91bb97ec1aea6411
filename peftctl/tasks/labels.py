"""The names of classes and tags: what data shows of them, and their numbers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence

from peftctl.errors import DataError
from peftctl.example import RowFault
from peftctl.nearest import nearest

UNKNOWN = "unknown label"
SHOWN = 12
MOST = 10_000


def found(names: Iterable[str], what: str) -> tuple[str, ...]:
    """Every name once: numbers by size, others by the alphabet. Raises DataError where there are fewer than two."""
    counted = Counter(names)
    if len(counted) > MOST:
        raise DataError(
            f"{len(counted):,} {what}s are different", f"task.problem: regression learns numbers, not {what}s"
        )
    if len(counted) < 2:
        only = f", {next(iter(counted))!r}" if counted else ""
        raise DataError(
            f"every row has the same {what}{only}: there is nothing to tell apart", "task.labels names them"
        )
    numbers = all(name.lstrip("-").isdecimal() for name in counted)
    return tuple(sorted(counted, key=int) if numbers else sorted(counted))


def number(name: str, labels: Sequence[str], what: str) -> int:
    """The number of a label. Raises RowFault where it is none of them, with the one that is meant perhaps."""
    try:
        return labels.index(name)
    except ValueError:
        near = nearest(name, list(labels))
        allowed = ", ".join(labels[:SHOWN]) + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")
        meant = f"; did you mean {near}?" if near else ""
        raise RowFault(f"{what} {name!r} is none of the {what}s; allowed: {allowed}{meant}", UNKNOWN) from None


def told(labels: Sequence[str]) -> str:
    """The argument by which ``from_pretrained`` gives a new head as many classes, with these names."""
    names = ", ".join(f"{at}: {json.dumps(label, ensure_ascii=False)}" for at, label in enumerate(labels))
    return f", id2label={{{names}}}"
