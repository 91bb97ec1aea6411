"""Whether a GGUF file is all there, by its own head: readers say of one that is not whatever they stumble over.

The format is described in https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; every length that a file gives is
checked before it is used.
"""

from __future__ import annotations

import struct
from math import prod
from pathlib import Path
from typing import BinaryIO

from peftctl.errors import UsageError

STRING, ARRAY, UINT32 = 8, 9, 4
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of each plain type
VERSIONS = (2, 3)
ALIGNMENT = 32


def check_whole(path: Path) -> None:
    """Raises UsageError where the file ends before its head or its tensors do."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            end = _Head(file, size).end()
        except _Short as error:
            said = str(error) or f"it ends within its own head, at {size:,} bytes"
            raise UsageError(
                f"model.name: {path} cannot be read as a GGUF model: {said}", "fetch or copy it again"
            ) from None
    if size < end:
        raise UsageError(
            f"model.name: {path} is not whole ({size:,} bytes, where its tensors need {end:,})",
            "fetch or copy it again",
        )


class _Short(Exception):
    """The file ends where its head goes on, or says what cannot be."""


class _Head:
    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.alignment = file, size, ALIGNMENT

    def end(self) -> int:
        """Where the last tensor ends, in bytes from the file's beginning."""
        self._take(4)
        version, tensors, keys = self._number("I"), self._number("Q"), self._number("Q")
        if version not in VERSIONS:
            raise _Short(f"it is of version {version}; allowed: {', '.join(map(str, VERSIONS))}")
        for _ in range(keys):
            key, kind = self._text(), self._number("I")
            if key == b"general.alignment" and kind == UINT32:
                self.alignment = self._number("I") or ALIGNMENT
            else:
                self._skip(kind)
        ends = [self._tensor() for _ in range(tensors)]
        start = -(-self.file.tell() // self.alignment) * self.alignment
        return start + max(ends, default=0)

    def _tensor(self) -> int:
        """Where a tensor ends, in bytes from where the first begins."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        self._text()
        shape = [self._number("Q") for _ in range(self._number("I"))]
        kind, offset = self._number("I"), self._number("Q")
        try:
            block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):  # whether it can be read is for the reader to say
            return offset
        taken: int = prod(shape) // block * size
        return offset + taken

    def _skip(self, kind: int, *, inside: bool = False) -> None:
        if kind == STRING:
            self._text()
        elif kind in WIDTHS:
            self._take(WIDTHS[kind])
        elif kind == ARRAY and not inside:
            kind, count = self._number("I"), self._number("Q")
            if kind in WIDTHS:
                self._take(WIDTHS[kind] * count)
                return
            for _ in range(count):
                self._skip(kind, inside=True)
        else:
            raise _Short(f"it holds a value of no known type ({kind})")

    def _number(self, form: str) -> int:
        value: int = struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))[0]
        return value

    def _text(self) -> bytes:
        return self._take(self._number("Q"))

    def _take(self, count: int) -> bytes:
        raw = self.file.read(count) if count <= self.size else b""
        if len(raw) != count:
            raise _Short
        return raw
