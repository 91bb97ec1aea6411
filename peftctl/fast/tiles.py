"""Two ways to keep what lies between reading and writing out of memory: some rows at a time, and compiled loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor


def tiles(x: Tensor, size: int) -> Iterator[slice]:
    """Parts of x's first dimension, ``size`` at a time on a CPU, where they stay in the cache; else all at once."""
    size = size if x.device.type == "cpu" else max(len(x), 1)
    for start in range(0, len(x), size):
        yield slice(start, min(start + size, len(x)))


@lru_cache(maxsize=32)
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` through torch.compile, for any number of rows."""
    from torch._inductor import config

    # In this process: workers of the compiler's own would outlive an interrupted run, and hold its output open.
    config.compile_threads = 1
    made: Callable[..., Any] = torch.compile(function, dynamic=True)
    return made
