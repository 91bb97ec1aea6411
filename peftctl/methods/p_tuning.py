"""P-tuning: vectors before the text, made by a small network. Liu et al. 2021, https://arxiv.org/abs/2103.10385

    p = MLP(embedding)              embedding [tokens, width]; MLP: width -> hidden -> hidden -> width, ReLU between
    p = MLP'(LSTM(embedding))       LSTM both ways, ``layers`` of ``hidden`` each; MLP': 2 hidden -> 2 hidden -> width

The network is trained with the vectors and not needed afterwards: what is saved is what it makes.

Trains tokens * width and the network. It cannot be merged: in use each text is that many tokens longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from peftctl.methods import continued
from peftctl.methods.contract import Anatomy, BaseName, DataFacts, MethodSettings, peft
from peftctl.methods.peft_method import PeftMethod

LAYERS = 2  # PEFT's


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
    network: Literal["mlp", "lstm"] = Field(
        "mlp",
        description="What makes them: each by itself, or one after the other both ways. The paper has the second; "
        "PEFT found both alike, and the first is faster.",
        json_schema_extra=peft("encoder_reparameterization_type"),
    )
    hidden: int = Field(
        128,
        ge=1,
        description="Inner width of the network that makes them.",
        json_schema_extra=peft("encoder_hidden_size"),
    )
    layers: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Layers of an LSTM. Default: 2.",
        json_schema_extra=peft("encoder_num_layers"),
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability of dropping each number between the layers of an LSTM, while training only.",
        json_schema_extra=peft("encoder_dropout"),
    )


@dataclass(frozen=True)
class PTuning(PeftMethod):
    name: str = "p_tuning"
    peft_type: str = "P_TUNING"
    settings: type[MethodSettings] = PTuningSettings
    category: Literal["addition", "selection", "reparameterisation"] = "addition"
    # PEFT's method comparison did best at this rate: 36.7 % with 50 vectors, where 1e-4 came to 35.0 % with 20. An
    # LSTM came to 35.0 % with 50, at 1e-4, which was the only rate that it was tried at.
    learning_rate: float = 1e-3

    def contradictions(self, settings: PTuningSettings) -> Iterator[tuple[str, str, str]]:
        lstm = settings.network == "lstm"
        if settings.layers is not None and not lstm:
            yield "layers", "has no effect with network: mlp", ""
        if settings.dropout and not (lstm and (settings.layers or LAYERS) > 1):
            yield "dropout", "has no effect but between the layers of an LSTM that has two or more", ""

    def resolve(self, settings: Any) -> MethodSettings:
        self.refuse(settings)
        lstm = settings.network == "lstm"
        made: MethodSettings = settings.model_copy(update={"layers": settings.layers or LAYERS} if lstm else {})
        return made

    def config(
        self, model: Any, settings: PTuningSettings, targets: Sequence[str], facts: DataFacts
    ) -> Mapping[str, Any]:
        return {
            "encoder_reparameterization_type": settings.network.upper(),
            "encoder_num_layers": settings.layers or LAYERS,
            "num_transformer_submodules": 1,  # see prompt_tuning
        }

    def parameters(self, settings: PTuningSettings, anatomy: Anatomy) -> int:
        width, hidden = anatomy.width, settings.hidden
        network = (width + 1) * hidden + (hidden + 1) * hidden + (hidden + 1) * width
        if settings.network == "lstm":
            inputs = [width, *[2 * hidden] * ((settings.layers or LAYERS) - 1)]
            # Each way four gates, with two biases each in torch.
            lstm = sum(2 * 4 * hidden * (each + hidden + 2) for each in inputs)
            network = lstm + (2 * hidden + 1) * 2 * hidden + (2 * hidden + 1) * width
        return settings.tokens * width + network

    def virtual_tokens(self, settings: Any) -> int:
        count: int = settings.tokens
        return count

    def save(self, model: Any, settings: Any, base: BaseName, folder: Path) -> None:
        import torch

        # What the network makes is saved as it makes it just now: without dropout, and as an LSTM computes in use,
        # which is by another kernel than where gradients are kept.
        model.prompt_encoder.eval()
        with torch.no_grad():
            super().save(model, settings, base, folder)

    def start_clash(self, settings: Any) -> tuple[str, str, str] | None:
        problem = "p_tuning keeps what its network made, and not the network, so no run can go on from another"
        return continued.SETTING, problem, "a start of its own, or prompt_tuning, which trains the vectors themselves"


METHOD = PTuning()
