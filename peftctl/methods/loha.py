"""LoHa: low-rank Hadamard product. Hyeon-Woo et al. 2022 (FedPara), https://arxiv.org/abs/2108.06098

    h = W x + (alpha / rank) * ((A1 B1) * (A2 B2)) x        A [outputs, rank], B [rank, inputs]

Two low-rank products, multiplied number by number: rank up to rank², for twice LoRA's parameters. A2 starts at zero.

Trains 2 * rank * (inputs + outputs) for each target. Merged into the weights it costs nothing in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from peftctl.methods.contract import Anatomy, MethodSettings, peft
from peftctl.methods.lycoris import Lycoris, LycorisSettings


class LohaSettings(LycorisSettings):
    """Settings of LoHa."""

    name: Literal["loha"] = "loha"
    rank: int = Field(8, ge=1, le=4096, description="Rank of each of the two products.", json_schema_extra=peft("r"))


@dataclass(frozen=True)
class Loha(Lycoris):
    name: str = "loha"
    peft_type: str = "LOHA"
    settings: type[MethodSettings] = LohaSettings
    # PEFT's method comparison ran it at 1e-4 alone (39.3 %), where LoKr did best at 3e-3: between the two, not tuned.
    learning_rate: float = 1e-3

    def parameters(self, settings: LohaSettings, anatomy: Anatomy) -> int:
        return sum(2 * settings.rank * (inputs + outputs) for inputs, outputs in anatomy.targets.values())


METHOD = Loha()
