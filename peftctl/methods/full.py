"""Full fine-tuning: every parameter of the model. The yardstick that the other methods are measured against.

    W <- W - update        for every W of the model

What it leaves is a model, not an adapter. Weights, gradients and AdamW's two moments are float32: 16 bytes a parameter,
beside the activations.

Trains every parameter. In use it costs what the base does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftctl.methods.contract import BaseName, MethodSettings
from peftctl.methods.selection import Selection, fill, put


class FullSettings(MethodSettings):
    """Settings of full fine-tuning: it has none."""

    name: Literal["full"] = "full"


@dataclass(frozen=True)
class Full(Selection):
    name: str = "full"
    peft_type: str = ""
    settings: type[MethodSettings] = FullSettings
    artifact: Literal["adapter", "model"] = "model"
    # The usual rate of full fine-tuning with AdamW: Llama 2's authors (Touvron et al. 2023, section 3.1) use 2e-5.
    learning_rate: float = 2e-5

    def loads_with(self, settings: Any) -> Literal["peft", "peftctl", "transformers"]:
        return "transformers"

    def selects(self, model: Any, settings: Any) -> Sequence[str]:
        return [name for name, _ in model.named_parameters()]

    def save(self, model: Any, settings: Any, base: BaseName, folder: Path) -> None:
        """As transformers loads it, in float32 as it was trained."""
        model.get_base_model().save_pretrained(folder)

    def load(self, model: Any, settings: Any, folder: Path) -> Any:
        return put(model, self._read(model, folder))

    def start_from(self, model: Any, settings: Any, folder: Path) -> None:
        values = self._read(model.get_base_model(), folder)
        fill(model, {name: values[name] for name in model.trained()}, folder)

    def _read(self, model: Any, folder: Path) -> dict[str, Any]:
        import torch

        read = type(model).from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        return {name: parameter.detach() for name, parameter in read.named_parameters()}


METHOD = Full()
