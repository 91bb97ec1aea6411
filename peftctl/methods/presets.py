"""Names for a method with settings of other sections: spelled out when a recipe is read, and never seen again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """``method: NAME`` is ``method`` with ``settings``, by dotted key, where the recipe does not say otherwise."""

    method: str
    settings: Mapping[str, Any]


PRESETS: dict[str, Preset] = {
    # Dettmers et al. 2023, https://arxiv.org/abs/2305.14314: LoRA on a base in 4-bit NormalFloat, its scales in 8 bits.
    "qlora": Preset("lora", {"model.quantization": {"bits": 4, "type": "nf4", "double_quant": True}}),
}
