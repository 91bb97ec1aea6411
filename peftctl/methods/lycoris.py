"""What LoHa and LoKr have in common, both from LyCORIS: their scale, and what they leave out while training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field

from peftctl.methods.contract import MethodSettings, TargetedSettings, peft
from peftctl.methods.peft_method import PeftMethod


class LycorisSettings(TargetedSettings):
    """Settings of both; each has a ``rank`` of its own."""

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
class Lycoris(PeftMethod):
    """A method with these settings."""

    def resolve(self, settings: Any) -> MethodSettings:
        made: MethodSettings = settings
        return made if settings.alpha is not None else made.model_copy(update={"alpha": float(settings.rank)})

    def leaves_out(self, settings: Any) -> bool:
        dropped: float = settings.module_dropout
        return dropped > 0
