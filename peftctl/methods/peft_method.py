"""What the methods that PEFT builds have in common: settings become fields of its config, the rest are defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peftctl.methods.contract import Anatomy, DataFacts, LowRank, MethodSettings


@dataclass(frozen=True)
class PeftMethod:
    """A method with the defaults of the contract. ``parameters`` is each method's own."""

    name: str
    peft_type: str
    settings: type[MethodSettings]
    learning_rate: float
    category: Literal["addition", "selection", "reparameterisation"] = "reparameterisation"
    artifact: Literal["adapter", "model"] = "adapter"

    @property
    def penalty(self) -> Callable[[Any], Any] | None:
        return None

    @property
    def after_update(self) -> Callable[[Any, int], None] | None:
        return None

    def resolve(self, settings: Any) -> MethodSettings:
        resolved: MethodSettings = settings
        return resolved

    def choose(self, model: Any) -> Sequence[str]:
        return ("all-linear",)

    def config(self, model: Any, settings: Any, targets: Sequence[str], facts: DataFacts) -> Mapping[str, Any]:
        """Fields of PEFT's config beyond those that settings name themselves."""
        return {}

    def build(self, model: Any, settings: Any, targets: Sequence[str], peft_type: str, facts: DataFacts) -> Any:
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, get_peft_model

        fields = {"task_type": peft_type, **own_fields(settings), **self.config(model, settings, targets, facts)}
        if targets:
            fields["target_modules"] = list(targets)
        return get_peft_model(model, PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.peft_type)](**fields))

    def parameters(self, settings: Any, anatomy: Anatomy) -> int:
        raise NotImplementedError

    def virtual_tokens(self, settings: Any) -> int:
        return 0

    def positions(self, settings: Any) -> int:
        return self.virtual_tokens(settings)

    def finish(self, model: Any) -> None:
        """Nothing."""

    def leaves_out(self, settings: Any) -> bool:
        return False

    def low_rank(self, layer: Any) -> LowRank | None:
        return None


def own_fields(settings: MethodSettings) -> dict[str, Any]:
    """The settings that are fields of PEFT's config, by its names."""
    fields = {}
    for name, declared in type(settings).model_fields.items():
        extra = declared.json_schema_extra
        if isinstance(extra, dict) and "peft" in extra:
            fields[str(extra["peft"])] = getattr(settings, name)
    return fields


def transposed(model: Any, targets: Sequence[str]) -> bool:
    """Whether the targets are GPT-2's Conv1D, whose weights are stored the other way round."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(model.get_submodule(name), Conv1D) for name in targets)
