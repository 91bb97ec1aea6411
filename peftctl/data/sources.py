"""Rows from files, each with the place it came from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from peftctl.atomic import sha256
from peftctl.errors import DataError, Place
from peftctl.example import Example, RowFault
from peftctl.formats import FORMATS, Format
from peftctl.nearest import nearest

SHOWN_FAULTS = 10


@dataclass(frozen=True)
class Sourced:
    """An example and the file and line of its row."""

    place: Place
    example: Example


def read_examples(path: Path, format_name: str, limit: int | None, task: str) -> list[Sourced]:
    """The rows of a JSONL file as examples. Raises DataError naming up to ten faulty rows by file and line."""
    examples: list[Sourced] = []
    faults: list[str] = []
    fmt: Format | None = None
    for place, row in islice(_rows(path, faults), limit):
        fmt = fmt or choose_format(format_name, frozenset(row), task, place)
        try:
            examples.append(Sourced(place, fmt.example(row)))
        except RowFault as fault:
            faults.append(f"{place}: {fault}")
    if faults:
        more = f"\n... and {len(faults) - SHOWN_FAULTS} more" if len(faults) > SHOWN_FAULTS else ""
        wanted = f"rows of format {fmt.name} hold {fmt.columns}" if fmt else "each line holds one JSON object"
        raise DataError("\n".join(faults[:SHOWN_FAULTS]) + more, hint=wanted)
    if not examples:
        raise DataError(f"{path}: no rows")
    return examples


def check_pin(path: Path, pinned: str | None) -> None:
    """Raises DataError where a file is pinned to other contents than it has. One that is not there is found later."""
    if pinned is not None and path.is_file() and (found := sha256(path)) != pinned:
        raise DataError(
            f"{path}: is not the file that the recipe pins (SHA-256 {found[:12]}..., pinned {pinned[:12]}...)",
            "take the pinned file, or leave out sha256 to train on this one",
        )


def choose_format(name: str, columns: frozenset[str], task: str, place: Place) -> Format:
    """The format of that name, or with ``auto`` the only one that fits the columns of the first row."""
    if name != "auto":
        return FORMATS[name]
    fitting = [fmt for fmt in FORMATS.values() if fmt.matches(columns, task)]
    if len(fitting) == 1:
        return fitting[0]
    held = ", ".join(sorted(columns)) or "none"
    if fitting:
        names = ", ".join(fmt.name for fmt in fitting)
        raise DataError(f"{place}: the columns {held} fit more than one format: {names}", hint="name one as `format:`")
    raise DataError(
        f"{place}: the columns {held} fit no format for {task}",
        hint="; ".join(f"{fmt.name} reads {fmt.columns}" for fmt in FORMATS.values()),
    )


def _rows(path: Path, faults: list[str]) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Each line's object with its place; what cannot be read goes to ``faults``. Blank lines are no rows."""
    try:
        file = path.open("rb")
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, not a file of rows") from None
    except OSError as error:
        near = nearest(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
        hint = f"did you mean {path.with_name(near)}?" if near else ""
        raise DataError(f"{path}: cannot be read: {error.strerror}", hint) from None
    with file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            place = Place(str(path), number)
            if isinstance(row := _row(line), dict):
                yield place, row
            else:
                faults.append(f"{place}: {row}")


def _row(line: bytes) -> dict[str, Any] | str:
    """The line's object, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
        if b"\\ud" in line.lower():  # half of a surrogate pair is legal JSON, and no text
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start} of the line"
    except UnicodeEncodeError as error:
        return f"holds half of a surrogate pair: {error.object[error.start]!a}"
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else f"{type(row).__name__}, not an object"
