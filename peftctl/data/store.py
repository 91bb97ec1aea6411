"""Encoded rows in flat arrays: eight bytes a token, where a Python object takes ten times that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from peftctl.text.tokens import IGNORED, Encoded


@dataclass(frozen=True, eq=False)
class Stored(Sequence[Encoded]):
    """``ids`` int32 and ``weights`` float32, both [tokens]; row i is at ``bounds[i]`` to ``bounds[i + 1]``.

    ``labels`` float64 and ``parts`` int32 likewise, by bounds of their own, where rows have any.
    """

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    bounds: npt.NDArray[np.int64]
    labels: Ragged | None = None
    parts: Ragged | None = None

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
        at %= len(self)
        part = slice(*self.bounds[at : at + 2])
        return Encoded(
            tuple(self.ids[part].tolist()),
            tuple(self.weights[part].tolist()),
            self.labels[at] if self.labels else (),
            self.parts[at] if self.parts else (),
        )

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each row."""
        return np.diff(self.bounds)

    @property
    def supervised(self) -> int:
        """Targets that are learned, of all rows; a row's first token is none."""
        if self.labels:
            return int(np.count_nonzero(self.labels.values != IGNORED))
        return int(np.count_nonzero(self.weights) - np.count_nonzero(self.weights[self.bounds[:-1]]))

    def arrays(self) -> dict[str, Any]:
        """All of it by name, as ``from_arrays`` takes it."""
        found = {"ids": self.ids, "weights": self.weights, "bounds": self.bounds}
        for name, ragged in (("labels", self.labels), ("parts", self.parts)):
            if ragged:
                found |= {name: ragged.values, f"{name}_bounds": ragged.bounds}
        return found


@dataclass(frozen=True, eq=False)
class Ragged:
    """Some numbers a row: those of row i are ``values[bounds[i]:bounds[i + 1]]``."""

    values: npt.NDArray[Any]
    bounds: npt.NDArray[np.int64]

    def __getitem__(self, at: int) -> tuple[Any, ...]:
        return tuple(self.values[slice(*self.bounds[at : at + 2])].tolist())


NO_LABELS, NO_PARTS = np.empty(0, np.float64), np.empty(0, np.int32)
ARRAYS = ("ids", "weights", "bounds", "labels", "labels_bounds", "parts", "parts_bounds")


def from_arrays(arrays: Mapping[str, Any]) -> Stored:
    """What ``Stored.arrays`` said. Raises KeyError where some are missing."""
    ragged = {
        name: Ragged(arrays[name], arrays[f"{name}_bounds"]) if name in arrays else None for name in ("labels", "parts")
    }
    return Stored(arrays["ids"], arrays["weights"], arrays["bounds"], **ragged)


def store(rows: Iterable[Encoded]) -> Stored:
    """The rows, of which there may be none at a time in memory but these. No row is empty."""
    ids: list[Any] = []
    weights: list[Any] = []
    labels: list[Any] = []
    parts: list[Any] = []
    for row in rows:
        ids.append(np.fromiter(row.ids, np.int32, len(row)))
        weights.append(np.fromiter(row.weights, np.float32, len(row)))
        labels.append(np.array(row.labels, np.float64) if row.labels else NO_LABELS)
        parts.append(np.array(row.parts, np.int32) if row.parts else NO_PARTS)
    none = (np.empty(0, np.int32), np.empty(0, np.float32))
    return Stored(
        np.concatenate([none[0], *ids]),
        np.concatenate([none[1], *weights]),
        _bounds(ids),
        _ragged(labels),
        _ragged(parts),
    )


def _bounds(rows: Sequence[Any]) -> npt.NDArray[np.int64]:
    return np.cumsum([0, *map(len, rows)], dtype=np.int64)


def _ragged(rows: Sequence[Any]) -> Ragged | None:
    return Ragged(np.concatenate(rows), _bounds(rows)) if any(map(len, rows)) else None
