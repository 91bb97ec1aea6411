"""LoKr: low-rank Kronecker product. Yeh et al. 2023 (LyCORIS), https://arxiv.org/abs/2309.14859

    h = W x + (alpha / rank) * (C kron (A B)) x        C [o1, i1], A [o2, rank], B [rank, i2]
    o1 o2 = outputs, i1 i2 = inputs

The update is one small matrix times each number of another. C starts at zero. Where the rank is no less than half of
the larger side, A B is one full matrix, as in LyCORIS.

Trains o1 * i1 + rank * (o2 + i2) for each target. Merged into the weights it costs nothing in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Literal

from pydantic import Field

from peftctl.methods.contract import Anatomy, MethodSettings, peft
from peftctl.methods.lycoris import Lycoris, LycorisSettings


class LokrSettings(LycorisSettings):
    """Settings of LoKr."""

    name: Literal["lokr"] = "lokr"
    rank: int = Field(
        32, ge=1, le=4096, description="Rank of the larger factor of the product.", json_schema_extra=peft("r")
    )
    factor: int = Field(
        -1,
        ge=-1,
        description="Size of the smaller factor: a divisor of the layer's sizes, or near one. -1: near their roots.",
        json_schema_extra=peft("decompose_factor"),
    )


@dataclass(frozen=True)
class Lokr(Lycoris):
    name: str = "lokr"
    peft_type: str = "LOKR"
    settings: type[MethodSettings] = LokrSettings
    # PEFT's method comparison (MetaMathQA, Llama-3.2-3B) has its best LoKr run at this rate.
    learning_rate: float = 3e-3

    def parameters(self, settings: LokrSettings, anatomy: Anatomy) -> int:
        return sum(_layer(settings, inputs, outputs) for inputs, outputs in anatomy.targets.values())


def _layer(settings: LokrSettings, inputs: int, outputs: int) -> int:
    (i1, i2), (o1, o2) = factors(inputs, settings.factor), factors(outputs, settings.factor)
    larger = o2 * i2 if settings.rank >= max(o2, i2) / 2 else settings.rank * (o2 + i2)
    return o1 * i1 + larger


def factors(size: int, near: int) -> tuple[int, int]:
    """``size`` as a product, the smaller factor first: ``near`` where it divides it, else the largest divisor up to
    ``near`` (-1: up to the root)."""
    if near > 0 and size % near == 0:
        return near, size // near
    most = isqrt(size) if near == -1 else min(near, isqrt(size))
    small = max(divisor for divisor in range(1, max(1, most) + 1) if size % divisor == 0)
    return small, size // small


METHOD = Lokr()
