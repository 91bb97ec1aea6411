"""Comma- and tab-separated values, as RFC 4180 has them. The first row holds the headings; every value is text."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import BinaryIO

from peftctl.data.readers.contract import MAX_ROW_BYTES, Numbered, Reader, TooLarge, lines, not_utf8
from peftctl.errors import DataError
from peftctl.example import RowFault


def csv_reader(delimiter: str) -> Reader:
    """A reader of values with that delimiter, numbered by the line on which a row begins."""

    def read(where: str, file: BinaryIO) -> Iterator[Numbered]:
        headings: list[str] = []
        for number, cells in _records(file, delimiter):
            if not headings:
                headings = _headings(where, number, cells)
            elif isinstance(cells, RowFault):
                yield number, cells
            elif len(cells) != len(headings):
                reason = f"{len(cells)} cells under {len(headings)} headings"
                yield number, RowFault(reason, "wrong number of cells")
            else:
                yield number, dict(zip(headings, cells, strict=True))
        if not headings:
            raise DataError(f"{where}: no line of headings")

    return read


def _headings(where: str, number: int, cells: list[str] | RowFault) -> list[str]:
    if isinstance(cells, RowFault):
        raise DataError(f"{where}:{number}: {cells}")
    if not all(cell.strip() for cell in cells):
        empty = next(i for i, cell in enumerate(cells, start=1) if not cell.strip())
        raise DataError(f"{where}:{number}: heading {empty} is empty")
    if repeated := next((cell for cell in cells if cells.count(cell) > 1), ""):
        raise DataError(f"{where}:{number}: repeated heading: {repeated}")
    return cells


def _records(file: BinaryIO, delimiter: str) -> Iterator[tuple[int, list[str] | RowFault]]:
    """The cells of each row that is not blank, with the line on which it begins, or the row's fault."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))  # of the process; its default is 128 KiB
    source = _Source(file)
    reader = csv.reader(source, delimiter=delimiter, strict=True)
    while True:
        source.begin()
        try:
            cells = _next(reader, source)
        except (csv.Error, StopIteration) as error:
            if not source.ended:
                yield source.first, source.fault or RowFault(f"not CSV: {error}", "broken CSV")
                continue
            if source.first:  # the parser asks for lines after a row's first only within quotes
                reason = "a quote is never closed, so all that follows was taken for its text"
                yield source.first, RowFault(reason, "quote never closed")
            return
        if source.fault:
            yield source.first, source.fault
        elif cells:
            yield source.first, cells


def _next(reader: Iterator[list[str]], source: _Source) -> list[str]:
    while True:
        try:
            return next(reader)
        except _LetGo:
            if not source.quoted:
                return []


class _LetGo(Exception):
    """Makes the parser forget what it holds of a row that is too large."""


class _Source:
    """The file's lines for Python's parser, with what it does not see: where a row began, its size, its fault.

    A line at fault is parsed all the same, so that a row over several lines ends where it should.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._lines = lines(file)
        self._again: list[tuple[int, bytes | TooLarge]] = []
        self.ended = False
        self.begin()

    def begin(self) -> None:
        """A new row begins with the next line."""
        self.first = 0
        self.fault: RowFault | None = None
        self.quoted = False  # whether the next line goes on within quotes
        self._held_bytes = 0

    def __iter__(self) -> _Source:
        return self

    def __next__(self) -> str:
        entry = self._again.pop() if self._again else next(self._lines, None)
        if entry is None:
            self.ended = True
            raise StopIteration
        number, line = entry
        self.first = self.first or number
        if isinstance(line, TooLarge):
            self.fault = line
            self.quoted ^= line.quotes % 2 == 1
            self._held_bytes = 0
            raise _LetGo
        if self._held_bytes and self._held_bytes + len(line) > MAX_ROW_BYTES:
            self.fault = TooLarge()
            self._again.append(entry)
            self._held_bytes = 0
            raise _LetGo
        # A parser that has let go has forgotten the quotes too.
        opening = '"' if self.quoted and not self._held_bytes else ""
        self.quoted = True  # should the parser ask again in this row
        self._held_bytes += len(line)
        self.fault = self.fault or _fault(line)
        return opening + line.decode("utf-8", "surrogateescape")


def _fault(line: bytes) -> RowFault | None:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        return not_utf8(error)
    return RowFault(f"a NUL byte at byte {at} of the line", "NUL byte") if (at := line.find(0)) >= 0 else None
