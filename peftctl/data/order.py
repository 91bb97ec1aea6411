"""The order of rows: a function of seed, epoch and number of rows, and of nothing else.

Each row's key is a hash of (seed, epoch, index); the order is by key. No generator has a state to save, and no
library's stream of random numbers has to stay what it is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = np.uint64(0x9E3779B97F4A7C15)


def order(seed: int, epoch: int, rows: int) -> npt.NDArray[np.int64]:
    """A permutation of ``range(rows)``, shape [rows]."""
    with np.errstate(over="ignore"):
        stream = _hash(np.array([seed], np.uint64) * _STEP + np.uint64(epoch))
        keys = _hash(stream + _STEP * (np.arange(rows, dtype=np.uint64) + np.uint64(1)))
    return np.argsort(keys, kind="stable")


def derived_seed(seed: int, *parts: int) -> int:
    """A 63-bit seed for one purpose, from the run's seed and the numbers that name the purpose."""
    with np.errstate(over="ignore"):
        state = _hash(np.array([seed], np.uint64) * _STEP)
        for part in parts:
            state = _hash(state + np.uint64(part) * _STEP + np.uint64(1))
    return int(state[0]) >> 1


def _hash(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * _MIX[0]
    values = (values ^ (values >> np.uint64(27))) * _MIX[1]
    return values ^ (values >> np.uint64(31))
