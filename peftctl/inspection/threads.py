"""numpy's matrix products in one thread, for as long as they are many and small.

Two threads that wait for each other at every product of 64 x 64 matrices take three times as long as one alone, and
on a busy machine thirty times as long.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

# OpenBLAS as numpy's wheels have it, and as systems have it.
_NAMES = ("scipy_openblas_{}_num_threads64_", "openblas_{}_num_threads64_", "openblas_{}_num_threads")


@contextmanager
def one_thread() -> Iterator[None]:
    """numpy's OpenBLAS keeps to one thread within this context; with another library nothing changes."""
    found = _openblas()
    if found is None:
        yield
        return
    get, change = found
    before = get()
    change(1)
    try:
        yield
    finally:
        change(before)


@cache
def _openblas() -> tuple[Any, Any] | None:
    """What tells and sets OpenBLAS's number of threads, in the library that this process has loaded."""
    import numpy  # noqa: F401 - loads it

    with suppress(OSError), open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if "openblas" in line}
        for path in sorted(paths):
            with suppress(OSError):
                library = ctypes.CDLL(path)
                for name in _NAMES:
                    if hasattr(library, name.format("set")) and hasattr(library, name.format("get")):
                        return getattr(library, name.format("get")), getattr(library, name.format("set"))
    return None
