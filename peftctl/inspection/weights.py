"""What a model's weights are on disk, by their files' headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError
from peftctl.inspection import bounded
from peftctl.inspection.bounded import Tensor
from peftctl.inspection.fit import PLAIN

# The formats' words for dtypes, in torch's.
WORDS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "BOOL": "bool",
}  # fmt: skip
MOST_COMPARED = 20_000
WORTH_SAYING = ("quant_method", "bits", "load_in_4bit", "load_in_8bit", "fmt", "weight_block_size")


@dataclass(frozen=True)
class Disk:
    """The files that hold the weights, and how many numbers they hold ``by_dtype``, most first."""

    files: int
    size_bytes: int
    by_dtype: Mapping[str, int]


def on_disk(folder: Path) -> Disk | None:
    """The safetensors of a model folder; None where there are none. No tensor is read.

    Raises UsageError where a file is none, or not whole; one that is missing is said by its name.
    """
    return disk_of(headers(folder))


def headers(folder: Path) -> dict[Path, dict[str, Tensor]]:
    """The tensors in each of the folder's files of weights. Raises UsageError as ``on_disk`` does."""
    files = bounded.weight_files(folder)
    if missing := next((file for file in files if not bounded.is_file(file)), None):
        raise UsageError(f"{missing} is missing, which the index of the weights names", "fetch or copy it again")
    return {file: bounded.header(file) for file in files}


def disk_of(files: Mapping[Path, Mapping[str, Tensor]]) -> Disk | None:
    """What they come to; None where there are none."""
    counts: dict[str, int] = {}
    for tensors in files.values():
        for tensor in tensors.values():
            word = WORDS.get(tensor.dtype, tensor.dtype.lower())
            counts[word] = counts.get(word, 0) + tensor.parameters
    return Disk(len(files), sum(map(bounded.size_of, files)), most_first(counts)) if files else None


def shapes(files: Mapping[Path, Mapping[str, Tensor]], settings: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors' shapes by name; none where they are packed, or so many that they take long to compare."""
    found = {name: tensor for tensors in files.values() for name, tensor in tensors.items()}
    plain = all(tensor.dtype in PLAIN for tensor in found.values()) and not quantization(settings)
    return {name: tensor.shape for name, tensor in found.items()} if plain and len(found) <= MOST_COMPARED else {}


def most_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def quantization(settings: Mapping[str, Any]) -> str:
    """How the weights are quantised by the config's own word, "" where they are not."""
    found = settings.get("quantization_config")
    if not isinstance(found, Mapping):
        return ""
    said = [f"{key} {str(found[key])[:40]}" for key in WORTH_SAYING if found.get(key) not in (None, False, "")]
    return ", ".join(said).removeprefix("quant_method ") or "yes"
