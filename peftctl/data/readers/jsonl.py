"""JSON Lines: one object a line, blank lines aside."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import BinaryIO

from peftctl.data.readers.contract import Numbered, Row, TooLarge, lines, not_utf8
from peftctl.example import RowFault


def read(where: str, file: BinaryIO) -> Iterator[Numbered]:
    """Each line's object, numbered by line."""
    for number, line in lines(file):
        if isinstance(line, TooLarge):
            yield number, line
        elif line.strip():
            yield number, _row(line)


def _row(line: bytes) -> Row | RowFault:
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return not_utf8(error)
    except json.JSONDecodeError as error:
        return RowFault(f"not JSON: {error.msg} at column {error.colno}", "broken JSON")
    except (ValueError, RecursionError) as error:  # ValueError: a number of more digits than Python reads
        return RowFault(f"not JSON: {error}", "broken JSON")
    return checked(value, escapes=has_escapes(line))


def has_escapes(data: bytes) -> bool:
    """Whether there may be halves of surrogate pairs in JSON: they can only stand there escaped."""
    return b"\\ud" in data or b"\\uD" in data


def checked(value: object, *, escapes: bool) -> Row | RowFault:
    """A value of JSON as a row, or why it is none."""
    if not isinstance(value, dict):
        return RowFault(f"{type(value).__name__}, not an object", "not an object")
    if escapes:  # half of a surrogate pair is legal JSON, and no text
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            found = error.object[error.start]
            return RowFault(f"holds half of a surrogate pair: {found!a}", "half of a surrogate pair")
    return value
