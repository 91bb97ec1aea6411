"""The tensors in a folder's safetensors files, read where they stand, whole or by rows, never the file.

The format: eight bytes with the header's length, the header (JSON: dtype, shape and place of every tensor), and the
tensors' bytes end to end. https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from peftctl.errors import MachineError, UsageError
from peftctl.model import identity

PIECE = 8 * 2**20  # bytes that are read or written at once
BLOCK = 2 * 2**20  # bytes of what is computed at once, which stay in a processor's cache
# safetensors' names of dtypes, and torch's.
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
FLOATS = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file: ``size`` bytes from ``start`` on, of torch's ``dtype`` by name."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def rows(self) -> int:
        """Its first dimension; 1 for a number."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return self.size // max(1, self.rows)


class Weights:
    """The tensors of the given safetensors files, ``stored`` by name, in the order in which they stand there.

    ``read`` brings one into memory of its own. Raises UsageError where a file is not what it should be.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.stored: dict[str, Stored] = {}
        self._handles: dict[Path, int] = {}
        self._opening = threading.Lock()
        for file in files:
            with file.open("rb") as handle:
                begin = 8 + int(struct.unpack("<Q", handle.read(8).ljust(8, b"\xff"))[0])
            found = {name: entry for name, entry in identity.header(file).items() if name != "__metadata__"}
            try:
                for name, entry in sorted(found.items(), key=lambda item: item[1]["data_offsets"][0]):
                    first, last = entry["data_offsets"]
                    dtype = DTYPES.get(entry["dtype"], entry["dtype"])
                    self.stored[name] = Stored(file, dtype, tuple(entry["shape"]), begin + first, last - first)
            except (KeyError, TypeError, ValueError):
                raise UsageError(f"{file} is no safetensors file: a tensor's entry in its header is none") from None
            if max((each.start + each.size for each in self.stored.values() if each.file == file), default=0) > (
                size := file.stat().st_size
            ):
                raise UsageError(f"{file} is not whole: it ends at {size:,} bytes, before its tensors do")

    def __enter__(self) -> Weights:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    def usual(self) -> str:
        """The dtype that most of the numbers have."""
        sizes: dict[str, int] = {}
        for stored in self.stored.values():
            if stored.dtype in FLOATS:
                sizes[stored.dtype] = sizes.get(stored.dtype, 0) + stored.size
        return max(sizes, key=lambda dtype: sizes[dtype], default="float32")

    def read(self, name: str, rows: slice | None = None) -> Any:
        """The tensor as it is stored, or these ``rows`` of its first dimension."""
        import torch

        stored = self.stored[name]
        first, last = (rows.start, rows.stop) if rows else (0, stored.rows)
        shape = (last - first, *stored.shape[1:]) if stored.shape else ()
        made = torch.empty(shape, dtype=getattr(torch, stored.dtype))
        if made.numel():
            into = memoryview(made.view(-1).view(torch.uint8).numpy())
            self._fill(into, stored, first * stored.row_bytes)
        return made

    def bytes_of(self, name: str) -> Iterator[bytes]:
        """The tensor's bytes, in pieces."""
        size = self.stored[name].size
        for first in range(0, size, PIECE):
            yield self.part_of(name, first, min(PIECE, size - first))

    def part_of(self, name: str, first: int, size: int) -> bytes:
        """``size`` of the tensor's bytes from ``first`` on, or as many as there are."""
        stored = self.stored[name]
        piece = bytearray(max(0, min(size, stored.size - first)))
        self._fill(memoryview(piece), stored, first)
        return bytes(piece)

    def _fill(self, into: memoryview, stored: Stored, offset: int) -> None:
        with self._opening:
            if stored.file not in self._handles:
                self._handles[stored.file] = os.open(stored.file, os.O_RDONLY)
            handle = self._handles[stored.file]
        done = 0
        while done < len(into):
            got = os.preadv(handle, [into[done : done + PIECE]], stored.start + offset + done)
            if got == 0:
                raise MachineError(f"{stored.file} ends before its tensors do")
            done += got


def blocks(rows: int, row_bytes: int, step: int = 64) -> Iterator[slice]:
    """``rows`` in blocks of some multiple of ``step`` of them, of about BLOCK bytes; the last may be up to twice that,
    and is never small beside ``step``.

    A matrix product by such blocks was bit-equal to the whole one; one of a few rows is computed in another order.
    """
    size = max(step, BLOCK // max(1, row_bytes) // step * step)
    first = 0
    while first < rows:
        last = rows if rows - first < size + step else first + size
        yield slice(first, last)
        first = last


def byte_size(dtype: str, shape: Sequence[int]) -> int:
    """The bytes of a tensor of torch's ``dtype`` by name."""
    import torch

    return prod(shape) * int(getattr(torch, dtype).itemsize)
