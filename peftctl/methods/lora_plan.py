"""What LoRA's settings come to in one model: as fields of PEFT's config, and as what must be found afterwards."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftctl.errors import UsageError, VerificationError
from peftctl.methods import lora_places as places
from peftctl.methods.lora_settings import DORA_IN_8_BITS, LoraSettings
from peftctl.methods.names import numbers


@dataclass(frozen=True)
class Plan:
    """By full names: the ``ranks`` and ``alphas`` of targets and ``parameters`` that have others than the settings say,
    the modules trained ``whole`` and those that stay ``tied`` to them, and the ``embedding`` of which the rows ``ids``
    are trained, with the ``heads`` that are one matrix with it.
    """

    settings: LoraSettings
    targets: tuple[str, ...]
    parameters: tuple[str, ...]
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    whole: tuple[str, ...]
    tied: tuple[str, ...]
    embedding: str
    ids: tuple[int, ...]
    heads: tuple[str, ...]

    def fields(self) -> dict[str, Any]:
        """PEFT's config, where its names or defaults are others than the settings'."""
        return {
            "target_modules": [],  # where there are none, PEFT would choose some
            "layers_to_transform": None,  # the targets are in them
            "init_lora_weights": True,
            "rank_pattern": {_exactly(name): rank for name, rank in self.ranks.items()},
            "alpha_pattern": {_exactly(name): alpha for name, alpha in self.alphas.items()},
            "modules_to_save": sorted(self.whole) or None,
            "ensure_weight_tying": bool(self.tied),
            "trainable_token_indices": {self.embedding: list(self.ids)} if self.ids else None,
            "target_parameters": sorted(self.parameters) or None,
        }

    def verify(self, peft_model: Any) -> None:
        """Raises VerificationError where PEFT, which matches by ends of names, did anything else."""
        from peft.tuners.lora import LoraLayer
        from peft.utils.other import ModulesToSaveWrapper, TrainableTokensWrapper

        modules = dict(peft_model.get_base_model().named_modules())
        adapted = {name: layer for name, layer in modules.items() if isinstance(layer, LoraLayer)}
        found = {_adapts(name, layer): layer for name, layer in adapted.items()}
        wanted = {name: self._numbers(name) for name in (*self.targets, *self.parameters)}
        _same({name: (layer.r["default"], layer.lora_alpha["default"]) for name, layer in found.items()}, wanted)
        tokens = {name for name, module in modules.items() if isinstance(module, TrainableTokensWrapper)}
        _same(dict.fromkeys(tokens), dict.fromkeys((self.embedding, *self.heads) if self.ids else ()))
        whole = {name for name, module in modules.items() if isinstance(module, ModulesToSaveWrapper)}
        _same(dict.fromkeys(whole), dict.fromkeys((*self.whole, *self.tied)))

    def _numbers(self, name: str) -> tuple[int, float | None]:
        return self.ranks.get(name, self.settings.rank), self.alphas.get(name, self.settings.alpha)


def plan(model: Any, settings: LoraSettings, targets: Sequence[str]) -> Plan:
    """Raises UsageError where the settings do not go with the model."""
    if settings.dora and getattr(model, "is_loaded_in_8bit", False):
        raise UsageError(f"method.dora: does not go with a base in 8 bits: {DORA_IN_8_BITS}")
    embeddings = [name for name in places.embeddings(model) if name in targets]
    for setting, odd in (("init", settings.init != "default"), ("lora_bias", settings.lora_bias)):
        if embeddings and odd:
            problem = f"does not go with the target {embeddings[0]}, which is an embedding"
            raise UsageError(f"method.{setting}: {problem}; allowed: its default")
    parameters = tuple(places.adapted_parameters(model, settings))
    adapted = [*targets, *parameters]
    whole = places.trained_whole(model, settings)
    embedding, ids = places.tokens(model, settings) if settings.trainable_tokens else ("", [])
    return Plan(
        settings,
        tuple(targets),
        parameters,
        numbers("method.rank_pattern", settings.rank_pattern, adapted),
        numbers("method.alpha_pattern", settings.alpha_pattern, adapted),
        tuple(whole),
        tuple(head for name in whole for head in places.shared(model, name)),
        embedding,
        tuple(ids),
        tuple(places.shared(model, embedding)) if embedding else (),
    )


def _exactly(name: str) -> str:
    """PEFT's pattern for one module and no other."""
    return f"^{re.escape(name)}"


def _adapts(name: str, layer: Any) -> str:
    """What a LoRA layer of PEFT adapts: the module in whose place it is, or a parameter of that."""
    parameter = getattr(layer, "parameter_name", None)
    return f"{name.replace('.base_layer', '')}.{parameter}" if parameter else name


def _same(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name, "") != wanted.get(name, ""))
    if odd:
        raise VerificationError(f"method: lora was not put where it was meant to go: {', '.join(odd[:5])}")
