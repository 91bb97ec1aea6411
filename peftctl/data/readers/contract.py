"""What a reader is, and the pieces that readers share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from peftctl.example import RowFault

Row = dict[str, Any]
Numbered = tuple[int, Row | RowFault]
# The path or URL, for messages, and the open file. Raises DataError for what is wrong with the file as a whole.
Reader = Callable[[str, BinaryIO], Iterator[Numbered]]

# A row this large is a file without line ends or an unclosed quote, not text to learn from.
MAX_ROW_BYTES = 8 << 20
BOM = b"\xef\xbb\xbf"
SKIP_BYTES = 1 << 16


class TooLarge(RowFault):
    """The fault of a row over MAX_ROW_BYTES. ``quotes`` counts the double quotes on its line, for csv."""

    def __init__(self, quotes: int = 0) -> None:
        super().__init__(f"larger than {MAX_ROW_BYTES >> 20} MiB", "too large")
        self.quotes = quotes


def not_utf8(error: UnicodeDecodeError, of: str = "line") -> RowFault:
    """The fault of text that is not UTF-8, naming the byte, counted from 0 in the line or the value."""
    return RowFault(f"not UTF-8 at byte {error.start} of the {of}", "not UTF-8")


def lines(file: BinaryIO) -> Iterator[tuple[int, bytes | TooLarge]]:
    """Each line with its end and its number from 1, without a byte order mark before the first.

    A line over MAX_ROW_BYTES comes as its fault and is never held whole.
    """
    number = 0
    while line := file.readline(MAX_ROW_BYTES + len(BOM) + len(b"\r\n")):
        number += 1
        if number == 1:
            line = line.removeprefix(BOM)
        if len(line) <= MAX_ROW_BYTES or len(line.rstrip(b"\r\n")) <= MAX_ROW_BYTES:
            yield number, line
            continue
        quotes = line.count(b'"')
        while line and not line.endswith(b"\n"):
            line = file.readline(SKIP_BYTES)
            quotes += line.count(b'"')
        yield number, TooLarge(quotes)
