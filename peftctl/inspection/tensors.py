"""Values of a safetensors file's tensors, a piece at a time: no file is ever wholly in memory.

Pieces are read, not mapped: a file that another program shortens meanwhile is then an error and not the end of the
process. They are read into the same arrays again and again, since fresh memory costs more than the reading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from peftctl.errors import UsageError
from peftctl.inspection.bounded import BITS, Tensor, opened

Array = NDArray[np.float64]

PIECE = 1 << 20  # elements, of which float64 takes 8 MB


def _e5m2(raw: NDArray[Any]) -> NDArray[Any]:
    """An 8-bit float with 5 bits of exponent is the upper half of a float16."""
    halves: NDArray[Any] = np.left_shift(raw.astype(np.uint16), 8).view(np.float16)
    return halves


def _e4m3(raw: NDArray[Any]) -> NDArray[Any]:
    """An 8-bit float with 4 bits of exponent and no infinities (Micikevicius et al. 2022, table 1)."""
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, code & 7
    size = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7.0))
    size[(code & 127) == 127] = np.nan
    values: NDArray[Any] = np.where(code & 128, -size, size)[raw]
    return values


# How the bytes of each dtype are to be read, and what makes numbers of them.
READ: dict[str, tuple[str, Callable[[NDArray[Any]], NDArray[Any]] | None]] = {
    "BOOL": ("u1", None), "U8": ("u1", None), "I8": ("i1", None), "U16": ("<u2", None), "I16": ("<i2", None),
    "U32": ("<u4", None), "I32": ("<i4", None), "U64": ("<u8", None), "I64": ("<i8", None), "F16": ("<f2", None),
    "F32": ("<f4", None), "F64": ("<f8", None), "BF16": ("<u2", None), "F8_E5M2": ("u1", _e5m2),
    "F8_E4M3": ("u1", _e4m3),
}  # fmt: skip


def readable(tensor: Tensor) -> bool:
    """Whether there is a way here to make numbers of its dtype."""
    return tensor.dtype in READ


class Reader:
    """Reads tensors as float64. What a method yields is good until the next piece is asked for.

    Each raises UsageError where a file is no longer what its header said.
    """

    def __init__(self) -> None:
        self._raw = np.empty(PIECE * 8, np.uint8)
        self._upper = np.empty(PIECE, np.uint32)
        self._numbers = np.empty(PIECE)

    def flat(self, tensor: Tensor) -> Iterator[Array]:
        """The tensor's values in order, [at most PIECE] at a time."""
        with opened(tensor.file) as file:
            for first in range(0, tensor.parameters, PIECE):
                yield self._read(file, tensor, first, self._numbers[: min(PIECE, tensor.parameters - first)])

    def rows(self, tensor: Tensor, width: int) -> Iterator[Array]:
        """The tensor as a matrix of ``width`` columns, at most PIECE: [some rows, width] at a time."""
        step = PIECE // width * width
        with opened(tensor.file) as file:
            for first in range(0, tensor.parameters, step):
                piece = self._numbers[: min(step, tensor.parameters - first)]
                yield self._read(file, tensor, first, piece).reshape(-1, width)

    def columns(self, tensor: Tensor, height: int) -> Iterator[Array]:
        """The tensor as a matrix of ``height`` rows, at most PIECE: [height, some columns] at a time."""
        width, step = tensor.parameters // height, PIECE // height
        with opened(tensor.file) as file:
            if width <= step:
                yield self._read(file, tensor, 0, self._numbers[: tensor.parameters]).reshape(height, width)
                return
            for first in range(0, width, step):
                piece = self._numbers[: height * min(step, width - first)].reshape(height, -1)
                for row in range(height):
                    self._read(file, tensor, row * width + first, piece[row])
                yield piece

    def _read(self, file: BinaryIO, tensor: Tensor, first: int, into: Array) -> Array:
        """The values from the ``first`` on, as many as fill ``into``."""
        kind, numbers = READ[tensor.dtype]
        width = BITS[tensor.dtype] // 8
        file.seek(tensor.start + first * width)
        raw = self._raw[: len(into) * width]
        if file.readinto(raw.data) != len(raw):  # type: ignore[attr-defined]
            raise UsageError(f"{tensor.file} has become shorter while it was read")
        values = raw.view(kind)
        if tensor.dtype == "BF16":  # the upper half of a float32
            upper = self._upper[: len(into)]
            np.copyto(upper, values)
            np.left_shift(upper, 16, out=upper)
            values = upper.view(np.float32)
        np.copyto(into, numbers(values) if numbers else values)
        return into
