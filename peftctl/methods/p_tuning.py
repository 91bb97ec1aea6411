"""P-tuning: vectors before the text, made by a small network. Liu et al. 2021, https://arxiv.org/abs/2103.10385

    p = MLP(embedding)        embedding [tokens, width]; MLP: width -> hidden -> hidden -> width, ReLU between

The network is trained with the vectors and not needed afterwards: what is saved is what it makes.

Trains tokens * width and the network. It cannot be merged: in use each text is that many tokens longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from peftctl.methods.contract import Anatomy, MethodSettings, peft
from peftctl.methods.peft_method import PeftMethod


class PTuningSettings(MethodSettings):
    """Settings of P-tuning."""

    name: Literal["p_tuning"] = "p_tuning"
    tokens: int = Field(
        20,
        ge=1,
        le=4096,
        description="Vectors that are put before each row.",
        json_schema_extra=peft("num_virtual_tokens"),
    )
    hidden: int = Field(
        128,
        ge=1,
        description="Inner width of the network that makes them.",
        json_schema_extra=peft("encoder_hidden_size"),
    )


@dataclass(frozen=True)
class PTuning(PeftMethod):
    name: str = "p_tuning"
    peft_type: str = "P_TUNING"
    settings: type[MethodSettings] = PTuningSettings
    category: Literal["addition", "selection", "reparameterisation"] = "addition"
    # PEFT's method comparison ran it at 1e-4 alone (35.0 %); ten times that trains it here, not tuned.
    learning_rate: float = 1e-3

    def parameters(self, settings: PTuningSettings, anatomy: Anatomy) -> int:
        width, hidden = anatomy.width, settings.hidden
        network = (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * width
        return settings.tokens * width + network

    def virtual_tokens(self, settings: Any) -> int:
        count: int = settings.tokens
        return count


METHOD = PTuning()
