"""Safetensors files written tensor by tensor, in pieces and in any order, without ever holding them."""

from __future__ import annotations

import errno
import json
import os
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.atomic import write_json
from peftctl.errors import MachineError
from peftctl.merge.weights import DTYPES, PIECE, Stored, byte_size

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
METADATA = {"format": "pt"}  # as transformers writes it
NAMES = {torch_name: name for name, torch_name in DTYPES.items()}


@dataclass(frozen=True)
class Wanted:
    """A tensor to be written: torch's ``dtype`` by name, and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return byte_size(self.dtype, self.shape)


def split(wanted: Mapping[str, Wanted], most: int) -> list[list[str]]:
    """Which tensors share a file: in the order given, up to ``most`` bytes each, or one tensor that is larger."""
    files: list[list[str]] = [[]]
    taken = 0
    for name, tensor in wanted.items():
        if files[-1] and taken + tensor.size > most:
            files.append([])
            taken = 0
        files[-1].append(name)
        taken += tensor.size
    return files


class Shards:
    """Files in ``folder`` for the tensors ``wanted``, each written in pieces.

    ``most``: the bytes of tensors in a file. Raises AssertionError from ``finish`` where one was not written whole.
    """

    def __init__(self, folder: Path, wanted: Mapping[str, Wanted], most: int) -> None:
        self.folder, self.wanted = folder, dict(wanted)
        self._files = split(wanted, most)
        self._place: dict[str, tuple[int, int]] = {}
        self._written: dict[str, int] = dict.fromkeys(wanted, 0)
        self._handles: list[int] = []
        self._counting = threading.Lock()
        for number, names in enumerate(self._files):
            self._begin(number, names)

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            os.close(self._handles.pop())

    def file(self, number: int) -> str:
        """As transformers names them."""
        count = len(self._files)
        return SINGLE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"

    def _begin(self, number: int, names: list[str]) -> None:
        entries: dict[str, Any] = {"__metadata__": METADATA}
        at = 0
        for name in names:
            tensor = self.wanted[name]
            end = at + tensor.size
            entries[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
            at = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        handle = os.open(self.folder / self.file(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._handles.append(handle)
        _write(handle, memoryview(struct.pack("<Q", len(text)) + text), 0)
        for name in names:
            self._place[name] = (handle, 8 + len(text) + entries[name]["data_offsets"][0])

    def write(self, name: str, piece: memoryview | bytes, first: int = 0) -> None:
        """Some of the bytes of ``name``, from its byte ``first`` on. Threads may write at once."""
        handle, at = self._place[name]
        _write(handle, memoryview(piece), at + first)
        self._count(name, len(piece))

    def copy(self, name: str, stored: Stored) -> None:
        """All of ``name``, as it is stored in another file. Raises MachineError where that is cut short."""
        handle, at = self._place[name]
        source = os.open(stored.file, os.O_RDONLY)
        try:
            done = 0
            while done < stored.size:
                moved = _move(source, stored.start + done, handle, at + done, stored.size - done)
                if moved == 0:
                    raise MachineError(f"{stored.file} ends before its tensors do")
                done += moved
        finally:
            os.close(source)
        self._count(name, stored.size)

    def _count(self, name: str, size: int) -> None:
        with self._counting:
            self._written[name] += size

    def finish(self) -> None:
        """The index, last of all."""
        short = sorted(name for name, done in self._written.items() if done != self.wanted[name].size)
        assert not short, f"not written whole: {short[:3]}"
        if len(self._files) > 1:
            placed = {name: self.file(number) for number, names in enumerate(self._files) for name in names}
            total = sum(tensor.size for tensor in self.wanted.values())
            index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(placed.items()))}
            write_json(self.folder / INDEX, index)


def raw(tensor: Any) -> memoryview:
    """A tensor's bytes as they are stored. The memory is the tensor's own where it is contiguous."""
    import torch

    flat = tensor.detach().contiguous().view(-1)
    return memoryview(flat.view(torch.uint8).numpy()) if flat.numel() else memoryview(b"")


def _move(source: int, start: int, handle: int, at: int, size: int) -> int:
    """Copy up to ``size`` bytes and return how many. The system does so itself where it can; on some file systems both
    files then share their blocks."""
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, handle, size, start, at)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    data = os.pread(source, min(size, PIECE), start)
    _write(handle, memoryview(data), at)
    return len(data)


def _write(handle: int, data: memoryview, at: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(handle, data[done : done + PIECE], at + done)
