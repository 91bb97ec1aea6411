"""Memory that is a file's, given back: an adapter's tensors are mapped, and stay in memory once they were looked at."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from pathlib import Path
from typing import Any


def let_go_of(file: Path) -> None:
    """Tell the system that no page of ``file`` is needed now, wherever it is mapped: reading its first number brings a
    dozen of a tensor's pages in. The same goes for it as for ``let_go``."""
    try:
        wanted = str(file.stat().st_ino)
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            mapped = [line.split(maxsplit=5) for line in maps]
    except OSError:
        return
    for addresses, _, _, _, inode, *path in mapped:
        if inode == wanted and path and Path(path[0].strip()).name == file.name:
            first, last = (int(each, 16) for each in addresses.split("-"))
            _advise(first, last)


def let_go(tensor: Any) -> None:
    """Tell the system that the whole pages of ``tensor`` are not needed now, where they are those of a file.

    What was written to them would be lost: it is for tensors that are only read. Elsewhere than on Linux, nothing.
    """
    if not tensor.numel():
        return
    page = mmap.PAGESIZE
    first = -(-tensor.data_ptr() // page) * page
    last = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // page * page
    if last > first and _of_a_file(first, last):
        _advise(first, last)


def _advise(first: int, last: int) -> None:
    if hasattr(mmap, "MADV_DONTNEED"):
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), mmap.MADV_DONTNEED)


def _of_a_file(first: int, last: int) -> bool:
    """Whether these addresses are all within one mapping of a file."""
    try:
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
            for line in maps:
                addresses, _, _, _, inode, *_ = line.split(maxsplit=5)
                begin, end = (int(each, 16) for each in addresses.split("-"))
                if begin <= first < end:
                    return last <= end and inode != "0"
    except OSError:
        pass
    return False
