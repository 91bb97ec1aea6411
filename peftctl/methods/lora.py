"""LoRA: low-rank adaptation. Hu et al. 2021, https://arxiv.org/abs/2106.09685

    h = W x + (alpha / rank) * B A x        A [rank, inputs], B [outputs, rank]

A starts random (Kaiming uniform), B at zero, so training starts from the base model's own outputs. W is frozen.

Trains rank * (inputs + outputs) for each target. Merged into the weights it costs nothing in use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from peftctl.methods.contract import Anatomy, DataFacts, LowRank, MethodSettings, TargetedSettings, peft
from peftctl.methods.peft_method import PeftMethod, transposed


class LoraSettings(TargetedSettings):
    """Settings of LoRA."""

    name: Literal["lora"] = "lora"
    rank: int = Field(
        16, ge=1, le=4096, description="Rank of the update: the inner size of B A.", json_schema_extra=peft("r")
    )
    alpha: float | None = Field(
        None,
        gt=0,
        description="Scale of the update, which is multiplied by alpha / rank. Default: twice the rank.",
        json_schema_extra=peft("lora_alpha"),
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability of dropping each input of A, while training only.",
        json_schema_extra=peft("lora_dropout"),
    )


@dataclass(frozen=True)
class Lora(PeftMethod):
    name: str = "lora"
    peft_type: str = "LORA"
    settings: type[MethodSettings] = LoraSettings
    # Ten times the usual rate of full fine-tuning (1e-5 to 2e-5), as "LoRA Without Regret" (Schulman et al. 2025)
    # found best over models and data sets.
    learning_rate: float = 2e-4

    def resolve(self, settings: LoraSettings) -> LoraSettings:
        if settings.alpha is not None:
            return settings
        return settings.model_copy(update={"alpha": 2.0 * settings.rank})

    def config(self, model: Any, settings: LoraSettings, targets: Sequence[str], facts: DataFacts) -> Mapping[str, Any]:
        return {"fan_in_fan_out": transposed(model, targets)}

    def parameters(self, settings: LoraSettings, anatomy: Anatomy) -> int:
        return sum(settings.rank * (inputs + outputs) for inputs, outputs in anatomy.targets.values())

    def low_rank(self, layer: Any) -> LowRank | None:
        from peft.tuners.lora import Linear
        from torch.nn import Identity

        if type(layer) is not Linear or layer.merged or len(layer.active_adapters) != 1:
            return None
        (name,) = layer.active_adapters
        known = name in layer.lora_A and isinstance(layer.lora_dropout[name], Identity) and not layer.fan_in_fan_out
        if not known or name in layer.lora_variant or layer.lora_B[name].bias is not None:
            return None
        return LowRank(layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]))


METHOD = Lora()
