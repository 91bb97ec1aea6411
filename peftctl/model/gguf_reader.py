"""A GGUF file read from its beginning, where every length that it gives is checked before it is used.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, NoReturn

from peftctl.errors import UsageError

ARRAY, STRING, UINT32 = 9, 8, 4
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of each plain type
VERSIONS = (2, 3)
MOST_ITEMS, LONGEST_TEXT = 4_000_000, 4_000_000
ALIGNMENT = 32


class Reader:
    """The file from its beginning; whatever goes beyond its end, or cannot be, is a UsageError that says so."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file, self.size = path, file, os.fstat(file.fileno()).st_size

    def fail(self, what: str) -> NoReturn:
        raise UsageError(f"{self.path} is no GGUF file that can be read, or is cut short: {what}")

    def begin(self) -> tuple[int, int, int]:
        """The file's version, and how many tensors and settings it says that it has."""
        if self.take(4) != b"GGUF":
            self.fail("it does not begin with GGUF")
        version, tensors, keys = self.number("I"), self.number("Q"), self.number("Q")
        if version not in VERSIONS:
            self.fail(f"version {version}; allowed: {', '.join(map(str, VERSIONS))}")
        return version, tensors, keys

    def take(self, count: int) -> bytes:
        raw = self.file.read(count) if count <= self.size else b""
        if len(raw) != count:
            self.fail(f"{count:,} bytes are said to stand at {self.file.tell() - len(raw):,} of {self.size:,}")
        return raw

    def number(self, form: str) -> int:
        value: int = struct.unpack(f"<{form}", self.take(struct.calcsize(f"<{form}")))[0]
        return value

    def text(self) -> bytes:
        length = self.number("Q")
        if length > LONGEST_TEXT:
            self.fail(f"a text of {length:,} bytes; allowed: {LONGEST_TEXT:,}")
        return self.take(length)

    def skip_value(self, kind: int, *, inside: bool = False) -> int:
        """Go past a value; how many items it has, 1 where it is no array."""
        if kind == STRING:
            self.text()
        elif kind in WIDTHS:
            self.take(WIDTHS[kind])
        elif kind == ARRAY and not inside:
            kind, count = self.number("I"), self.number("Q")
            if count > MOST_ITEMS:
                self.fail(f"a list of {count:,} items; allowed: {MOST_ITEMS:,}")
            if kind in WIDTHS:
                self.take(WIDTHS[kind] * count)
            else:
                for _ in range(count):
                    self.skip_value(kind, inside=True)
            return count
        else:
            self.fail(f"a value of no known type ({kind})")
        return 1
