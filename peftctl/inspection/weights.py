"""What a model's weights are on disk, by their files' headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError
from peftctl.inspection import bounded

# The formats' words for dtypes, in torch's.
WORDS = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "BOOL": "bool",
}  # fmt: skip
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
    files = bounded.weight_files(folder)
    if missing := next((file for file in files if not bounded.is_file(file)), None):
        raise UsageError(f"{missing} is missing, which the index of the weights names", "fetch or copy it again")
    counts: dict[str, int] = {}
    for file in files:
        for tensor in bounded.header(file).values():
            word = WORDS.get(tensor.dtype, tensor.dtype.lower())
            counts[word] = counts.get(word, 0) + tensor.parameters
    return Disk(len(files), sum(map(bounded.size_of, files)), most_first(counts)) if files else None


def most_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def quantization(settings: Mapping[str, Any]) -> str:
    """How the weights are quantised by the config's own word, "" where they are not."""
    found = settings.get("quantization_config")
    if not isinstance(found, Mapping):
        return ""
    said = [f"{key} {str(found[key])[:40]}" for key in WORTH_SAYING if found.get(key) not in (None, False, "")]
    return ", ".join(said).removeprefix("quant_method ") or "yes"
