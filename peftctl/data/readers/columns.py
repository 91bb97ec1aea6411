"""Parquet and Arrow (IPC file and stream, Feather 2), a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

from peftctl.data.readers.contract import Numbered, not_utf8
from peftctl.errors import DataError
from peftctl.example import RowFault

BATCH_ROWS = 256
BUFFER_BYTES = 1 << 20
ARROW_FILE = b"ARROW1"


def parquet(where: str, file: BinaryIO) -> Iterator[Numbered]:
    """The rows of a Parquet file, numbered from 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    _check_seeks(where, file)
    try:
        # With pre_buffer the row groups already read stay in memory; without a buffer size a column chunk is whole.
        opened = pq.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES)
        _check_names(where, opened.schema_arrow.names)
        yield from _rows(opened.iter_batches(BATCH_ROWS))
    except pa.ArrowException as error:
        raise _broken(where, "Parquet", error) from None
    except OSError as error:
        if error.errno:
            raise
        raise _broken(where, "Parquet", error) from None


def arrow(where: str, file: BinaryIO) -> Iterator[Numbered]:
    """The rows of an Arrow file or stream, numbered from 1."""
    import pyarrow as pa

    _check_seeks(where, file)
    start = file.tell()
    begins = file.read(len(ARROW_FILE))
    file.seek(start)
    try:
        batches: Iterable[Any]
        if begins == ARROW_FILE:
            opened = pa.ipc.open_file(file)
            batches = (opened.get_batch(i) for i in range(opened.num_record_batches))
        else:
            batches = opened = pa.ipc.open_stream(file)
        _check_names(where, opened.schema.names)
        yield from _rows(batches)
    except pa.ArrowException as error:
        raise _broken(where, "Arrow", error) from None
    except OSError as error:
        if error.errno:
            raise
        raise _broken(where, "Arrow", error) from None


def _rows(batches: Iterable[Any]) -> Iterator[Numbered]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):  # an Arrow file's batches are as large as its writer's
            piece = batch.slice(start, BATCH_ROWS)
            try:
                rows = piece.to_pylist()
            except (ValueError, OverflowError):  # some value is none of Python's: find whose
                rows = [_row(piece.slice(i, 1)) for i in range(piece.num_rows)]
            for row in rows:
                number += 1
                yield number, row


def _row(batch: Any) -> Any:
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return not_utf8(error, "value")
    except (ValueError, OverflowError) as error:
        return RowFault(f"holds a value that Python has none for: {error}", "value out of range")


def _check_seeks(where: str, file: BinaryIO) -> None:
    if not file.seekable():
        raise DataError(f"{where}: this kind of file cannot be read from a stream", "copy it to this machine first")


def _check_names(where: str, names: list[str]) -> None:
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{where}: repeated column: {', '.join(repeated)}")


def _broken(where: str, kind: str, error: Exception) -> DataError:
    return DataError(f"{where}: not a whole {kind} file: {(str(error).splitlines() or [''])[0].rstrip('.')}")
