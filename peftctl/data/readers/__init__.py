"""Rows from a file's bytes, by the ending of its name. A new kind of file is one module and one line here."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from peftctl.data.files import file_name
from peftctl.data.readers import columns, document, jsonl, table, text
from peftctl.data.readers.contract import MAX_ROW_BYTES, Numbered, Reader, Row
from peftctl.errors import DataError, MachineError
from peftctl.nearest import nearest

__all__ = ["MAX_ROW_BYTES", "READERS", "Numbered", "Reader", "Row", "read"]

READERS: dict[str, Reader] = {
    "jsonl": jsonl.read,
    "ndjson": jsonl.read,
    "json": document.read,
    "csv": table.csv_reader(","),
    "tsv": table.csv_reader("\t"),
    "txt": text.read,
    "parquet": columns.parquet,
    "arrow": columns.arrow,
    "feather": columns.arrow,
}
TEXTS = ("jsonl", "ndjson", "json", "csv", "tsv", "txt")


def read(where: str, file: BinaryIO) -> Iterator[Numbered]:
    """The rows of ``file``, each with its number, or the fault that a row has.

    ``where`` is the path or URL, whose ending says what the file holds. A number counts from 1: the line on which
    the row begins in text, the row in ``.json``, ``.parquet`` and ``.arrow``. Rows are read as they are asked for, and
    memory does not grow with the file, save for ``.json``, which is read whole. ``file`` is read from where it stands;
    that of ``.parquet`` and ``.arrow`` has to seek. The caller closes it.

    Raises DataError at once for an unknown ending, and on the way for a file that is broken as a whole; MachineError
    where the reading itself fails.
    """
    ending, packing = _kind(where)
    return _guarded(where, READERS[ending], file, packing)


def _kind(where: str) -> tuple[str, str]:
    """The ending that says the format, and the one that says the compression or ""."""
    parts = file_name(where).lower().split(".")[1:]
    packing = parts.pop() if parts and parts[-1] in UNPACKED else ""
    ending = parts[-1] if parts else ""
    if ending in (TEXTS if packing else READERS):
        return ending, packing
    found = "." + ".".join(filter(None, (ending, packing))) if ending or packing else "no ending"
    allowed = ", ".join(f".{each}" for each in READERS)
    problem = f"{where}: not a kind of file that can be read (found {found}); allowed: {allowed}"
    problem += f"; text also with {' or '.join(f'.{each}' for each in UNPACKED)}"
    near = nearest(ending, TEXTS if packing else tuple(READERS)) if ending else ""
    raise DataError(problem + (f"; did you mean .{'.'.join(filter(None, (near, packing)))}?" if near else ""))


def _guarded(where: str, reader: Reader, file: BinaryIO, packing: str) -> Iterator[Numbered]:
    """The reader's rows; what fails beneath it told as an error of ours."""
    number = 0
    try:
        for number, row in reader(where, UNPACKED[packing](file) if packing else file):
            yield number, row
    except (EOFError, zlib.error, OSError) as error:
        after = f" after line {number}" if number else ""
        # A system's own error has a number; what the decompressors raise has none.
        if packing and not (isinstance(error, OSError) and error.errno):
            raise DataError(f"{where}: broken or cut short{after}, as .{packing}: {error}") from None
        reason = getattr(error, "strerror", None) or error
        raise MachineError(f"{where}: cannot be read on{after}: {reason}") from None


def _gunzipped(file: BinaryIO) -> BinaryIO:
    return cast(BinaryIO, gzip.GzipFile(fileobj=file))


def _unzstd(file: BinaryIO) -> BinaryIO:
    import pyarrow as pa

    stream = pa.CompressedInputStream(pa.PythonFile(_Kept(file), mode="r"), "zstd")
    return cast(BinaryIO, io.BufferedReader(stream, 1 << 18))


class _Kept:
    """A file that stays open when pyarrow closes it: it is the caller's."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read

    def close(self) -> None:
        pass


UNPACKED: dict[str, Callable[[BinaryIO], BinaryIO]] = {"gz": _gunzipped, "zst": _unzstd}
