"""Layer-norm tuning: the scales of the normalisations alone. Zhao et al. 2023, https://arxiv.org/abs/2312.11420

    h = x / rms(x) * g        g [width], trained (and LayerNorm's shift b, where there is one)

Trains width for each RMSNorm, twice that for each LayerNorm. Merged into the weights it costs nothing in use.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from peftctl.errors import UsageError
from peftctl.methods.contract import Anatomy, DataFacts, MethodSettings, Targets
from peftctl.methods.peft_method import PeftMethod


class LnTuningSettings(MethodSettings):
    """Settings of layer-norm tuning."""

    name: Literal["ln_tuning"] = "ln_tuning"
    targets: Targets | None = Field(
        None, description="Which normalisations are trained, by name or pattern. Default: all of them."
    )

    @property
    def wanted(self) -> tuple[str, ...] | None:
        return self.targets


@dataclass(frozen=True)
class LnTuning(PeftMethod):
    name: str = "ln_tuning"
    peft_type: str = "LN_TUNING"
    settings: type[MethodSettings] = LnTuningSettings
    category: Literal["addition", "selection", "reparameterisation"] = "selection"
    # PEFT's method comparison trains it at 1e-3.
    learning_rate: float = 1e-3

    def targetable(self, model: Any) -> Mapping[str, tuple[int, int]]:
        """Every normalisation with a scale; (parameters, width)."""
        found = {}
        for name, module in model.named_modules():
            own = dict(module.named_parameters(recurse=False))
            if type(module).__name__.endswith("Norm") and "weight" in own:
                found[name] = (sum(parameter.numel() for parameter in own.values()), len(own["weight"]))
        return found

    def choose(self, model: Any) -> Sequence[str]:
        names = list(self.targetable(model))
        if not names:
            raise UsageError(f"method.targets: {type(model).__name__} has no normalisations with a scale")
        return names

    def build(self, model: Any, settings: Any, targets: Sequence[str], peft_type: str, facts: DataFacts) -> Any:
        with _no_doubt():
            return super().build(model, settings, targets, peft_type, facts)

    def load(self, model: Any, settings: Any, folder: Path) -> Any:
        with _no_doubt():
            return super().load(model, settings, folder)

    def trains_own_layers(self, settings: Any) -> bool:
        return True

    def parameters(self, settings: LnTuningSettings, anatomy: Anatomy) -> int:
        return sum(parameters for parameters, _ in anatomy.targets.values())


@contextmanager
def _no_doubt() -> Iterator[None]:
    """Without PEFT's warning that an RMSNorm has no known (inputs, outputs): copying it needs none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Unsupported layer type")
        yield


METHOD = LnTuning()
