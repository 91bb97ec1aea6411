"""The places of a PEFT model where something was trained, each merged by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.methods import LowRank, Method


@dataclass(frozen=True)
class Unit:
    """A module of the model with what was trained of it. ``parameters``: those that it has when merged, by their
    names in the model; ``rows``: the update, where it is a low-rank one of a linear layer and nothing else; ``small``:
    those of one dimension, as they are before merging.
    """

    name: str
    module: Any
    parameters: tuple[str, ...]
    rows: LowRank | None
    small: Mapping[str, Any]

    def base(self) -> Any:
        """The model's own module in it."""
        from peft.utils.other import AuxiliaryTrainingWrapper

        if isinstance(self.module, AuxiliaryTrainingWrapper):
            return self.module.original_module
        return self.module.get_base_layer()


def units(peft_model: Any, method: Method) -> list[Unit]:
    """All of them, in the model's order; those within others are part of them."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    found: list[Unit] = []
    for name, module in peft_model.get_base_model().named_modules():
        if found and name.startswith(f"{found[-1].name}."):
            continue
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            own = {f"{name}.{last}": each for last, each in Unit(name, module, (), None, {}).base().named_parameters()}
            small = {each: parameter.data.clone() for each, parameter in own.items() if parameter.dim() < 2}
            found.append(Unit(name, module, tuple(own), method.low_rank(module), small))
    return found


def merged(unit: Unit) -> dict[str, Any]:
    """The unit's parameters by name, with what was trained in them, as PEFT merges them. The unit can be filled and
    merged again."""
    module, before = unit.module, unit.base()
    if hasattr(module, "unload_and_optionally_merge_module"):
        own = module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    else:
        module.merge(safe_merge=False, adapter_names=None)
        own = module.get_base_layer()
    values = {f"{unit.name}.{last}": parameter.data for last, parameter in own.named_parameters()}
    if unit.base() is not before:  # layer-norm tuning exchanges the two
        module.unmerge()
    for part in module.modules():
        if getattr(part, "merged_adapters", None):
            part.merged_adapters.clear()
    return values
