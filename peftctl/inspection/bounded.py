"""Files from strangers, read so that none can hang, fill the memory or run code.

Only plain files are opened, never a pipe or a device; how much is read is known before; JSON is bounded in bytes,
values and depth before it becomes objects; of a safetensors file the header alone is read, and all that it says is
checked against the file. A pickle (.bin, .pt, .pth) runs code when it is read, so none is ever opened.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

from peftctl.errors import MachineError, UsageError

LARGEST_HEADER = 100_000_000  # what the safetensors library itself allows
JSON_BYTES = 50_000_000  # a config may name every target, and a mixture of experts has tens of thousands
MOST_VALUES = 1_500_000  # a value of JSON takes up to two hundred bytes of memory, and a microsecond or two
DEEPEST = 64
LONGEST_NAME = 500
MOST_ENTRIES = 10_000
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
INDEX = "model.safetensors.index.json"

# Bits of an element of each dtype that the safetensors format knows.
BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
_HALF_PAIR = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file: ``size_bytes`` from byte ``start`` of ``file`` on."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    size_bytes: int

    @property
    def parameters(self) -> int:
        return prod(self.shape)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A plain file, open for reading. Raises UsageError where there is none, MachineError where it cannot be read."""
    with _refusals(path):
        _plain(path, path.stat().st_mode)
        # Not blocking: what was a file just now may be a pipe by now, whose opening waits for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        _plain(path, os.fstat(handle).st_mode)
        yield file


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """What the system says of a path, as an error that names it."""
    try:
        yield
    except ValueError:  # a zero byte
        raise UsageError(f"{str(path)!r} is no path") from None
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise UsageError(f"{path}: no such file or folder") from None
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path} is a link that leads back to itself") from None
        raise MachineError(f"{path} cannot be read: {error.strerror}") from None


def _plain(path: Path, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise UsageError(f"{path} is a folder, where a file was expected")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is no plain file (a pipe, socket or device), and is not opened")


def size_of(path: Path) -> int:
    """A plain file's size in bytes. Raises UsageError where there is none."""
    with _refusals(path):
        found = path.stat()
        _plain(path, found.st_mode)
        return found.st_size


def is_file(path: Path) -> bool:
    """Whether there is a plain file; a link that leads nowhere, or to a pipe, is none."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def names(folder: Path) -> list[str]:
    """The names in a folder, sorted; not what is below them. Raises UsageError where there is no folder to read.

    At most MOST_ENTRIES: no folder that is meant here holds more.
    """
    with _refusals(folder), os.scandir(folder) as entries:
        found = [entry.name for entry, _ in zip(entries, range(MOST_ENTRIES + 1), strict=False)]
    if len(found) > MOST_ENTRIES:
        raise UsageError(f"{folder} holds more than {MOST_ENTRIES:,} files")
    return sorted(found)


def below(folder: Path) -> list[str]:
    """Every plain file below a folder by its relative name, sorted; no link to a folder is followed."""
    found, left = [], [""]
    while left:
        at = left.pop()
        for name in names(folder / at):
            relative = f"{at}/{name}" if at else name
            if (folder / relative).is_dir() and not (folder / relative).is_symlink():
                left.append(relative)
            elif is_file(folder / relative):
                found.append(relative)
        if len(found) + len(left) > MOST_ENTRIES:
            raise UsageError(f"{folder} holds more than {MOST_ENTRIES:,} files")
    return sorted(found)


def pickles(folder: Path) -> tuple[str, ...]:
    """The pickles in a folder, by name."""
    return tuple(name for name in names(folder) if name.endswith(PICKLES))


def text(path: Path, limit: int = JSON_BYTES) -> str:
    """A file's UTF-8 text. Raises UsageError where it is longer than ``limit`` bytes, or another encoding."""
    with opened(path) as file:
        raw = file.read(limit + 1)
    if len(raw) > limit:
        raise UsageError(f"{path} is too long (found {size_of(path):,} bytes); allowed: {limit:,}")
    return _decoded(raw, path)


def _decoded(raw: bytes, path: Path) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start} is none of it)") from None


def json_object(path: Path, limit: int = JSON_BYTES) -> dict[str, Any]:
    """The JSON object in a file; NaN and infinities become None. Raises UsageError where there is none."""
    found = value_of(text(path, limit), str(path))
    if not isinstance(found, dict):
        raise UsageError(f"{path} is no JSON object (found {_kind(found)})")
    return found


def value_of(written: str, where: str) -> Any:
    """The value of JSON text that may be anything. Raises UsageError, naming ``where``, where it is none.

    Texts in it can be written as UTF-8: half of a surrogate pair becomes a question mark.
    """
    if written.count("[") + written.count("{") + written.count(",") > MOST_VALUES:
        raise UsageError(f"{where} holds more than {MOST_VALUES:,} values")
    try:
        found = json.loads(written, parse_constant=lambda _: None, parse_float=_finite)
        if sum(1 for _ in _nested(found)) > DEEPEST:
            raise RecursionError
    except RecursionError:
        raise UsageError(f"{where} is nested more than {DEEPEST} levels deep") from None
    except ValueError as error:
        place = f" (line {error.lineno}: {error.msg})" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(f"{where} is not JSON{place}") from None
    return _whole_text(found) if re.search(r"\\u[dD][89a-fA-F]", written) else found


def _nested(value: Any) -> Iterator[None]:
    """As many items as ``value`` has levels of lists and objects within each other."""
    level = [value]
    while level := [each for each in level if isinstance(each, list | dict)]:
        yield None
        level = [below for each in level for below in (each.values() if isinstance(each, dict) else each)]


def _finite(written: str) -> float | None:
    number = float(written)
    return number if number - number == 0 else None


def _whole_text(value: Any) -> Any:
    if isinstance(value, str):
        return _HALF_PAIR.sub("?", value)
    if isinstance(value, list):
        return [_whole_text(each) for each in value]
    if isinstance(value, dict):
        return {_whole_text(key): _whole_text(each) for key, each in value.items()}
    return value


def _kind(value: Any) -> str:
    kinds = {list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return kinds.get(type(value), "null")


def header(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file by its name, in the order of its bytes.

    Raises UsageError where the file is none, is cut short, or says of itself what is not so.
    """
    no_file = f"{path} is no safetensors file"
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= size - 8:
            said = f"its header is said to take {length:,} bytes" if len(first) == 8 else "it has no header"
            raise UsageError(f"{no_file}, or is cut short: {said}, and the file has {size:,}")
        if length > LARGEST_HEADER:
            raise UsageError(f"{no_file}: its header takes {length:,} bytes; allowed: {LARGEST_HEADER:,}")
        raw = file.read(length)
    try:
        read = value_of(_decoded(raw, path), "its header")
    except UsageError as error:
        raise UsageError(f"{no_file}: {error.message.removeprefix(str(path)).strip()}") from None
    if not isinstance(read, dict):
        raise UsageError(f"{no_file}: its header is no JSON object")
    start = 8 + length
    found = [_tensor(path, name, entry, start) for name, entry in read.items() if name != "__metadata__"]
    found.sort(key=lambda tensor: (tensor.start, tensor.size_bytes))
    _in_place(found, path, start, size)
    return {tensor.name: tensor for tensor in found}


def _tensor(path: Path, name: str, entry: Any, start: int) -> Tensor:
    """What the header says of one tensor. Raises UsageError where that cannot be."""
    if fault := _fault(name, entry):
        raise UsageError(f"{path}: tensor {name[:80]!r}: {fault}")
    first, end = entry["data_offsets"]
    return Tensor(path, name, entry["dtype"], tuple(entry["shape"]), start + first, end - first)


def _fault(name: str, entry: Any) -> str:
    """What cannot be in a header's entry, or ""."""
    if len(name) > LONGEST_NAME:
        return f"a name of {len(name):,} characters; allowed: {LONGEST_NAME:,}"
    if not isinstance(entry, dict):
        return "it is not described by a JSON object"
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        return f"no such dtype (found {str(dtype)[:40]!r}); allowed: {', '.join(BITS)}"
    if not isinstance(shape, list) or len(shape) > DEEPEST or not _counts(shape):
        return f"its shape is no list of sizes (found {str(shape)[:80]})"
    if not isinstance(offsets, list) or len(offsets) != 2 or not _counts(offsets) or offsets[0] > offsets[1]:
        return f"its data_offsets are no beginning and end (found {str(offsets)[:80]})"
    size = offsets[1] - offsets[0]
    if prod(shape) * BITS[dtype] != 8 * size:
        return f"{dtype} of shape {str(shape)[:80]} does not take the {size:,} bytes that it is given"
    return ""


def _counts(values: list[Any]) -> bool:
    """Whether they are whole numbers that can be sizes or places."""
    return all(type(each) is int and 0 <= each < 2**63 for each in values)


def _in_place(tensors: list[Tensor], path: Path, start: int, size: int) -> None:
    """Raises UsageError unless the tensors, sorted by place, lie end to end from ``start`` to the end of the file."""
    at = start
    for tensor in tensors:
        if tensor.start != at:
            how = "overlaps the one before" if tensor.start < at else "leaves a gap behind the one before"
            raise UsageError(f"{path}: tensor {tensor.name[:80]!r} {how}")
        at += tensor.size_bytes
    if at != size:
        kind = "is cut short" if size < at else "is longer than its tensors"
        raise UsageError(f"{path} {kind} ({size:,} bytes, where its header needs {at:,})", "fetch or copy it again")


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a model in ``folder`` is loaded from: those its index names, or all that are there.

    Raises UsageError where the index is none, or names what is not in the folder.
    """
    single = folder / "model.safetensors"
    if not is_file(folder / INDEX):
        return (
            [single] if is_file(single) else [folder / name for name in names(folder) if name.endswith(".safetensors")]
        )
    placed = json_object(folder / INDEX).get("weight_map")
    if not isinstance(placed, dict) or not all(isinstance(name, str) for name in placed.values()):
        raise UsageError(f"{folder / INDEX} has no weight_map of tensors to files")
    files = sorted(set(placed.values()))
    if outside := [name for name in files if "/" in name or "\0" in name or name in ("", ".", "..")]:
        raise UsageError(f"{folder / INDEX} names a file that is not beside it (found {outside[0][:80]!r})")
    return [folder / name for name in files]
