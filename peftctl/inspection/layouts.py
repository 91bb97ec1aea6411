"""How PEFT lays out each kind of adapter in its file: the tensors of a module, by name, and how their shapes agree.

A shape is written in letters, one a dimension, as in an einsum: two tensors that have a letter in common must agree
on its size. ``i`` are a layer's inputs, ``o`` its outputs, ``r`` the rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import sqrt

from peftctl.inspection.adapter_config import AdapterConfig
from peftctl.inspection.bounded import Tensor


@dataclass(frozen=True)
class Layout:
    """``parts`` of a module with their shapes (or alternatives of them); ``needed``: of each group one alternative.

    ``neutral``: the value that a part holds throughout where the module changes nothing. ``weight``: the shape of the
    layer's weight (outputs, inputs) as products of letters. ``rank`` and ``alpha`` are fields of PEFT's config.
    ``of_keys``: virtual tokens that are keys and values of every layer, and no embeddings.
    """

    parts: Mapping[str, tuple[str, ...]]
    needed: tuple[tuple[tuple[str, ...], ...], ...]
    neutral: Mapping[str, float] = field(default_factory=dict)
    weight: tuple[str, str] = ("o", "i")
    rank: str = ""
    alpha: str = ""
    of_keys: bool = False

    @property
    def prompt(self) -> bool:
        """Whether it is virtual tokens before the input, and no change of any weight."""
        return "prompt_embeddings" in self.parts

    def scale(self, config: AdapterConfig, rank: int, alpha: float | None) -> float | None:
        """What B A is multiplied by; None where the config does not say."""
        if alpha is None or rank < 1:
            return None
        if self.rank == "init_r":  # AdaLoRA divides by the rank it began with, and counts alpha 0 as that rank
            first = config.whole("init_r") or 0
            return (alpha if alpha > 0 else rank) / (first + 1e-5)
        return alpha / sqrt(rank) if config.flag("use_rslora") else alpha / rank


_LORA = {
    "lora_A": ("ri",), "lora_B": ("or",), "lora_embedding_A": ("ri",), "lora_embedding_B": ("or",),
    "lora_magnitude_vector": ("o", "oi"), "lora_B.bias": ("o",),
}  # fmt: skip
_PAIR = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
_LOHA = {"hada_w1_a": ("or",), "hada_w1_b": ("ri",), "hada_w2_a": ("or",), "hada_w2_b": ("ri",)}
_LOKR = {
    "lokr_w1": ("ab",), "lokr_w1_a": ("as",), "lokr_w1_b": ("sb",),
    "lokr_w2": ("cd",), "lokr_w2_a": ("ct",), "lokr_w2_b": ("td",),
}  # fmt: skip
_PROMPT = Layout({"prompt_embeddings": ("nd",)}, ((("prompt_embeddings",),),))
_PREFIX = replace(_PROMPT, of_keys=True)

LAYOUTS: dict[str, Layout] = {
    "LORA": Layout(_LORA, (_PAIR,), {name: 0.0 for pair in _PAIR for name in pair}, rank="r", alpha="lora_alpha"),
    "ADALORA": Layout(
        {"lora_A": ("ri",), "lora_B": ("or",), "lora_E": ("r1",)},
        ((("lora_A", "lora_B", "lora_E"),),),
        {"lora_A": 0.0, "lora_B": 0.0, "lora_E": 0.0},
        rank="init_r",
        alpha="lora_alpha",
    ),
    "IA3": Layout({"ia3_l": ("o1", "1i")}, ((("ia3_l",),),), {"ia3_l": 1.0}),
    # Its tensors for convolutions (hada_t1, lokr_t2) relate to the others in another way, which is not checked.
    "LOHA": Layout(
        {**_LOHA, "hada_t1": ("",), "hada_t2": ("",)},
        ((tuple(_LOHA),),),
        dict.fromkeys(_LOHA, 0.0),
        rank="r",
        alpha="alpha",
    ),
    "LOKR": Layout(
        {**_LOKR, "lokr_t2": ("",)},
        ((("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")), (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))),
        dict.fromkeys(_LOKR, 0.0),
        weight=("ac", "bd"),
        rank="r",
        alpha="alpha",
    ),
    "PROMPT_TUNING": _PROMPT,
    "P_TUNING": _PROMPT,
    "PREFIX_TUNING": _PREFIX,
}  # fmt: skip


def shapes(parts: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shape of each part of a module."""
    return {part: tensor.shape for part, tensor in parts.items()}


def sizes(layout: Layout, of: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, int], str]:
    """The size of each letter in a module whose parts have these shapes, and what contradicts, or "".

    Dimensions beyond the letters are a convolution's.
    """
    found: dict[str, int] = {}
    by: dict[str, str] = {}
    if any(layout.parts.get(part) == ("",) for part in of):
        return found, ""
    for part, shape in of.items():
        able = [letters for letters in layout.parts.get(part, ()) if _agrees(letters, shape, found)]
        if part not in layout.parts:
            continue
        if not able:
            letters = layout.parts[part][0]
            other = next((by[letter] for letter in letters if letter in by), "")
            against = f" beside {other} {list(of[other])}" if other else ""
            return found, f"{part} cannot be {list(shape)}{against}"
        for letter, size in zip(able[0], shape, strict=False):
            found.setdefault(letter, size)
            by.setdefault(letter, part)
    return found, ""


def _agrees(letters: str, shape: tuple[int, ...], found: Mapping[str, int]) -> bool:
    enough = len(shape) == len(letters) or len(shape) > 2 >= len(letters)
    fixed = {**found, "1": 1}
    return enough and all(fixed.get(letter, size) == size for letter, size in zip(letters, shape, strict=False))
