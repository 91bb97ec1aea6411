"""Names for a method with certain settings. Presets are spelled out when a recipe is read, and never seen again; of
variants, which are one setting of a method, it is said which.
"""

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

# What papers call methods, and is a setting of one here: the method, and the setting as a recipe has it.
VARIANTS: dict[str, tuple[str, str]] = {
    "dora": ("lora", "dora: true"),
    "rslora": ("lora", "rslora: true"),
    "pissa": ("lora", "init: pissa"),
    "olora": ("lora", "init: olora"),
    "loraplus": ("lora", "loraplus: 16"),
    "lora+": ("lora", "loraplus: 16"),
}


def variant(name: str) -> str:
    """What a recipe says for the variant ``name``, or "" where it is none."""
    method, setting = VARIANTS.get(name.lower(), ("", ""))
    return f"{method} with {setting}" if method else ""


def spelled(name: str) -> tuple[str, str]:
    """The method that a preset or variant is made of, and in words what it is; the name itself and "" for others."""
    if name in PRESETS:
        preset = PRESETS[name]
        settings = ", ".join(f"{key}: {_written(value)}" for key, value in preset.settings.items())
        return preset.method, f"{preset.method} with {settings}"
    if name.lower() in VARIANTS:
        return VARIANTS[name.lower()][0], variant(name)
    return name, ""


def _written(value: Any) -> str:
    """A value as a recipe has it."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_written(each)}" for key, each in value.items()) + "}"
    return str(value).lower() if isinstance(value, bool) else str(value)
