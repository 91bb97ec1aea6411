"""Which rows an optimizer step takes, and how they are cut into micro-batches.

The rows of step s are positions s*B to (s+1)*B of one endless stream, the epochs' orders one after another. They
depend on (seed, position) alone: not on processes, micro-batches or workers, and a run that goes on after a stop
takes the rows it would have taken.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from peftctl.data.order import order


@dataclass(frozen=True)
class Plan:
    """The whole run's rows: ``batch_size`` rows a step, ``total`` in all, ``rows`` in an epoch."""

    rows: int
    batch_size: int
    total: int
    seed: int

    @property
    def steps(self) -> int:
        return math.ceil(self.total / self.batch_size)

    def indices(self, step: int) -> list[int]:
        """The rows of ``step`` (from 0), as indices; only the run's last step may have fewer than a full batch."""
        first = step * self.batch_size
        last = min(first + self.batch_size, self.total)
        return [int(_order(self.seed, at // self.rows, self.rows)[at % self.rows]) for at in range(first, last)]

    def epoch(self, step: int) -> float:
        """How many epochs are done after ``step`` steps."""
        return min(step * self.batch_size, self.total) / self.rows


def plan(rows: int, batch_size: int, seed: int, *, epochs: float | None, max_steps: int | None) -> Plan:
    """The plan of a run of so many epochs, or of so many steps."""
    total = max_steps * batch_size if max_steps is not None else max(1, math.floor((epochs or 0) * rows + 0.5))
    return Plan(rows, batch_size, total, seed)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, rows: int) -> npt.NDArray[np.int64]:
    return order(seed, epoch, rows)


def micro_batches(lengths: Sequence[int], tokens: int, *, packed: bool = False) -> list[list[int]]:
    """Rows of these lengths as groups of indices, at most ``tokens`` tokens each; a longer row goes alone.

    Padded rows: longest first, so that neighbours are of like length, padding (which counts) is little, and memory
    peaks at once. Packed rows: best fit, longest first, into the group that they fill up most.
    """
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups: list[list[int]] = []
    if not packed:
        for index in longest_first:
            if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= tokens:
                groups[-1].append(index)
            else:
                groups.append([index])
        return groups
    rooms: list[tuple[int, int]] = []  # what is left in a group, and which; smallest first
    for index in longest_first:
        place = bisect_left(rooms, (lengths[index], -1))
        room, group = rooms.pop(place) if place < len(rooms) else (tokens, len(groups))
        groups += [[]] if group == len(groups) else []
        groups[group].append(index)
        insort(rooms, (room - lengths[index], group))
    return groups
