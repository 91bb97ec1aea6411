"""LoHa: low-rank Hadamard product. Hyeon-Woo et al. 2022 (FedPara), https://arxiv.org/abs/2108.06098

    h = W x + (alpha / rank) * ((A1 B1) * (A2 B2)) x        A [outputs, rank], B [rank, inputs]

Two low-rank products, multiplied number by number: rank up to rank², for twice LoRA's parameters. A2 starts at zero.

Trains 2 * rank * (inputs + outputs) for each target. Merged into the weights it costs nothing in use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from peftctl.methods.contract import Anatomy, MethodSettings, TargetedSettings, peft
from peftctl.methods.peft_method import PeftMethod


class LohaSettings(TargetedSettings):
    """Settings of LoHa."""

    name: Literal["loha"] = "loha"
    rank: int = Field(8, ge=1, le=4096, description="Rank of each of the two products.", json_schema_extra=peft("r"))
    alpha: float | None = Field(
        None,
        gt=0,
        description="Scale of the update, which is multiplied by alpha / rank. Default: the rank.",
        json_schema_extra=peft("alpha"),
    )
    rank_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability of dropping each row of the update, while training only.",
        json_schema_extra=peft("rank_dropout"),
    )
    module_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability of leaving out a layer's whole update, while training only.",
        json_schema_extra=peft("module_dropout"),
    )


@dataclass(frozen=True)
class Loha(PeftMethod):
    name: str = "loha"
    peft_type: str = "LOHA"
    settings: type[MethodSettings] = LohaSettings
    # LyCORIS, where the method's settings come from, recommends about LoRA's rate.
    learning_rate: float = 1e-3

    def resolve(self, settings: Any) -> MethodSettings:
        made: MethodSettings = settings
        return made if settings.alpha is not None else made.model_copy(update={"alpha": float(settings.rank)})

    def leaves_out(self, settings: Any) -> bool:
        dropped: float = settings.module_dropout
        return dropped > 0

    def parameters(self, settings: LohaSettings, anatomy: Anatomy) -> int:
        return sum(2 * settings.rank * (inputs + outputs) for inputs, outputs in anatomy.targets.values())


METHOD = Loha()
