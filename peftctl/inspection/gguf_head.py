"""The head of a GGUF file: its tensors, and a copy of what it says without its vocabulary.

A vocabulary of 50,000 words takes the usual readers five seconds, and nothing here needs it. The format is described in
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; every length that a file gives is checked before it is used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from peftctl.errors import UsageError
from peftctl.inspection import bounded, roles
from peftctl.inspection.weights import Disk, most_first
from peftctl.model.gguf_reader import ALIGNMENT, STRING, Reader

MOST_KEYS, MOST_TENSORS = 10_000, 1_000_000
KEPT_ITEMS = 4096  # of an array in the copy: settings by layer are short, and vocabularies long


@dataclass(frozen=True)
class Stored:
    """Tensors of one name but for their numbers: ``shape`` of each, outermost dimension first."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    layers: int


@dataclass(frozen=True)
class Head:
    """``settings``: a GGUF file with the same settings and tensor names, without vocabulary and weights;
    ``vocabulary``: the rows of its embedding, 0 where it has none.
    """

    architecture: str
    disk: Disk
    tensors: tuple[Stored, ...]
    vocabulary: int
    settings: bytes


def head(path: Path) -> Head:
    """Raises UsageError where the file is no GGUF, is cut short, or says of itself what is not so."""
    with bounded.opened(path) as file:
        reader = Reader(path, file)
        version, tensors, keys = reader.begin()
        if keys > MOST_KEYS or tensors > MOST_TENSORS:
            reader.fail(f"{keys:,} settings and {tensors:,} tensors; allowed: {MOST_KEYS:,} and {MOST_TENSORS:,}")
        kept, architecture = _settings(reader, keys)
        if not tensors:
            raise UsageError(f"{path} holds no tensors, so it is no model (found {keys:,} settings)")
        infos = [_tensor(reader) for _ in range(tensors)]
        start = -(-file.tell() // ALIGNMENT) * ALIGNMENT
    _check_whole(path, reader.size, start, infos)
    by_dtype: dict[str, int] = {}
    groups: dict[tuple[str, tuple[int, ...], str], int] = {}
    for name, shape, dtype, _, _ in infos:
        by_dtype[dtype] = by_dtype.get(dtype, 0) + prod(shape)
        key = (roles.collapsed(name), shape, dtype)
        groups[key] = groups.get(key, 0) + 1
    return Head(
        architecture,
        Disk(1, reader.size, most_first(by_dtype)),
        tuple(Stored(*key, layers) for key, layers in groups.items()),
        next((shape[0] for name, shape, *_ in infos if name == "token_embd.weight"), 0),
        _copy(version, kept, [name for name, *_ in infos]),
    )


def _settings(reader: Reader, keys: int) -> tuple[list[bytes], str]:
    """Each setting's bytes, long lists left out, and the name of the architecture."""
    kept, architecture = [], ""
    for _ in range(keys):
        begin = reader.file.tell()
        key, kind = reader.text(), reader.number("I")
        short = reader.skip_value(kind) <= KEPT_ITEMS
        end = reader.file.tell()
        if not short or key == b"general.alignment":
            continue
        reader.file.seek(begin)
        raw = reader.take(end - begin)
        kept.append(raw)
        if key == b"general.architecture" and kind == STRING:
            architecture = raw[8 + len(key) + 4 + 8 :].decode("utf-8", "replace")[:80]
    return kept, architecture


def _tensor(reader: Reader) -> tuple[str, tuple[int, ...], str, int, int]:
    """Name, shape, dtype, where its bytes begin and how many they are."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    name = reader.text()[:200].decode("utf-8", "replace")
    rank = reader.number("I")
    if rank > 8:
        reader.fail(f"tensor {name[:80]!r} has {rank:,} dimensions")
    shape = tuple(reversed([reader.number("Q") for _ in range(rank)]))
    kind, offset = reader.number("I"), reader.number("Q")
    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):
        return name, shape, f"type {kind}", offset, 0
    return name, shape, GGMLQuantizationType(kind).name, offset, prod(shape) // block * size


def _check_whole(path: Path, size: int, start: int, infos: list[tuple[str, tuple[int, ...], str, int, int]]) -> None:
    end = max((start + offset + taken for *_, offset, taken in infos), default=0)
    if end > size:
        raise UsageError(
            f"{path} is not whole ({size:,} bytes, where its tensors need {end:,})", "fetch or copy it again"
        )


def _copy(version: int, kept: list[bytes], names: list[str]) -> bytes:
    """A GGUF file of these settings whose tensors are all one and the same number."""
    infos = [struct.pack("<Q", len(raw)) + raw + struct.pack("<IQIQ", 1, 1, 0, 0) for raw in map(str.encode, names)]
    made = b"GGUF" + struct.pack("<IQQ", version, len(names), len(kept)) + b"".join(kept) + b"".join(infos)
    return made + bytes(-len(made) % ALIGNMENT + ALIGNMENT)
