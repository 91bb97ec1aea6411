"""Encoded rows in flat arrays: eight bytes a token, where a Python object takes ten times that."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from peftctl.text.tokens import Encoded


@dataclass(frozen=True, eq=False)
class Stored(Sequence[Encoded]):
    """``ids`` int32 and ``weights`` float32, both [tokens]; row i is at ``bounds[i]`` to ``bounds[i + 1]``."""

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    bounds: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, at: int) -> Encoded: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Encoded]: ...
    def __getitem__(self, at: int | slice) -> Encoded | Sequence[Encoded]:
        if isinstance(at, slice):
            return [self[index] for index in range(len(self))[at]]
        if not -len(self) <= at < len(self):
            raise IndexError(at)
        part = slice(*self.bounds[at % len(self) : at % len(self) + 2])
        return Encoded(tuple(self.ids[part].tolist()), tuple(self.weights[part].tolist()))

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.bounds)

    @property
    def supervised(self) -> int:
        """Targets that are learned, of all rows; a row's first token is none."""
        return int(np.count_nonzero(self.weights) - np.count_nonzero(self.weights[self.bounds[:-1]]))


def store(rows: Iterable[Encoded]) -> Stored:
    """The rows, of which there may be none at a time in memory but these. No row is empty."""
    ids: list[Any] = []
    weights: list[Any] = []
    for row in rows:
        ids.append(np.fromiter(row.ids, np.int32, len(row)))
        weights.append(np.fromiter(row.weights, np.float32, len(row)))
    bounds = np.cumsum([0, *map(len, ids)], dtype=np.int64)
    none = (np.empty(0, np.int32), np.empty(0, np.float32))
    return Stored(np.concatenate([none[0], *ids]), np.concatenate([none[1], *weights]), bounds)
