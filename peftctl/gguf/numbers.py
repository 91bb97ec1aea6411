"""The types of numbers that GGUF files are written in here; the others are llama.cpp's own quantiser's work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Numbers:
    """``file_type``: what the file says it mostly holds (llama.cpp, ``llama_ftype``). ``merged``: torch's dtype, by
    name, that the weights are merged in, so that they are rounded once. ``quantised``: whether llama.cpp's own
    quantiser makes it, from a file of float32.
    """

    file_type: int
    merged: str = "float32"
    quantised: bool = True


TYPES: Mapping[str, Numbers] = {
    "f16": Numbers(1, "float16", quantised=False),
    "bf16": Numbers(32, "bfloat16", quantised=False),
    "f32": Numbers(0, quantised=False),
    "q8_0": Numbers(7),
    "q6_k": Numbers(18),
    "q5_k_m": Numbers(17),
    "q5_k_s": Numbers(16),
    "q4_k_m": Numbers(15),
    "q4_k_s": Numbers(14),
    "q3_k_l": Numbers(13),
    "q3_k_m": Numbers(12),
    "q3_k_s": Numbers(11),
    "q2_k": Numbers(10),
}


def stored_as(type_: str, *, plain: bool) -> str:
    """The type of a tensor in a file of ``type_``, which nothing has quantised."""
    return "f32" if plain else type_


def encoded(value: Any, type_: str) -> Any:
    """A float32 array [rows, width] as that type's bytes."""
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    return quantize(np.ascontiguousarray(value, dtype=np.float32), GGMLQuantizationType[type_.upper()])


def kinds(path: Path) -> dict[str, int]:
    """How many matrices of each type are in a file, by the type's name, the commonest first."""
    from gguf import GGUFReader

    return dict(
        Counter(
            tensor.tensor_type.name.lower() for tensor in GGUFReader(path).tensors if len(tensor.shape) > 1
        ).most_common()
    )
