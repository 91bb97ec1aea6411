"""metrics.jsonl, a run's journal: its beginning and its end, however long it has grown."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError
from peftctl.inspection import bounded
from peftctl.inspection.values import number

NAME = "metrics.jsonl"
HEAD_BYTES, TAIL_BYTES = 1_000_000, 3_000_000
MOST_LINES = 20_000

Event = Mapping[str, Any]


@dataclass(frozen=True)
class Journal:
    """``events`` in order. ``whole``: none in the middle were left out. ``torn``: how many lines are no events.

    A last line that ends in the middle is no such: a run that was killed leaves one.
    """

    events: Sequence[Event] = field(default_factory=tuple)
    whole: bool = True
    torn: int = 0

    def last(self, kind: str) -> Event | None:
        return next((event for event in reversed(self.events) if event["event"] == kind), None)

    def all(self, kind: str) -> list[Event]:
        return [event for event in self.events if event["event"] == kind]


def read_journal(run: Path) -> Journal:
    """The run's journal, empty where it has none. Raises UsageError where it is no plain file."""
    path = run / NAME
    if not os.path.lexists(path):
        return Journal()
    with bounded.opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        whole = size <= HEAD_BYTES + TAIL_BYTES
        parts = [file.read(HEAD_BYTES + TAIL_BYTES if whole else HEAD_BYTES)]
        if not whole:
            file.seek(size - TAIL_BYTES)
            parts.append(file.read(TAIL_BYTES))
    first, *rest = ([line for line in part.split(b"\n") if line.strip()] for part in parts)
    last = rest[0] if rest else first
    if rest:  # the middle begins and ends somewhere within a line
        first, last = first[:-1], last[1:]
    if not parts[-1].endswith(b"\n"):
        last = last[:-1] + [line for line in last[-1:] if _event(line)]
    lines = [*first, *last] if rest else last
    if len(lines) > MOST_LINES:
        lines, whole = [*lines[:100], *lines[100 - MOST_LINES :]], False
    events = [_event(line) for line in lines]
    return Journal(tuple(each for each in events if each), whole, sum(not each for each in events))


def _event(line: bytes) -> Event | None:
    try:
        found = bounded.value_of(line.decode("utf-8"), "")
    except (UsageError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("event"), str) else None


def numbers(value: Any) -> dict[str, Any]:
    """The metrics in what may be anything: numbers (None where one was not finite), and scores of choices."""
    return dict(_metrics(value)) if isinstance(value, Mapping) else {}


def _metrics(value: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, found in value.items():
        if name in ("event", "step"):
            continue
        if found is None or number(found) is not None:
            yield name, number(found)
        elif isinstance(found, Mapping):
            accuracy, macro_f1 = number(found.get("accuracy")), number(found.get("macro_f1"))
            if accuracy is not None and macro_f1 is not None:
                yield name, {**found, "accuracy": accuracy, "macro_f1": macro_f1}
