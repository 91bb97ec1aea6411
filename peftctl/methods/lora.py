"""LoRA: low-rank adaptation. Hu et al. 2021, https://arxiv.org/abs/2106.09685

    h = W x + (alpha / rank) * B A x        A [rank, inputs], B [outputs, rank]

A starts random (Kaiming uniform), B at zero, so training starts from the base model's own outputs. W is frozen.

Its variants are settings: another scale (rslora), start (init) or rate (loraplus), and, with s for the scale,

    dora                 h = m * (W + s B A) x / |W + s B A|        m [outputs], |.| of each row
    lora_bias            h = W x + s (B A x + b)                    b [outputs]
    target_parameters    h = W_e x + s B_e A_e x                    for each expert e

Trains rank * (inputs + outputs) for each target, outputs more with dora or lora_bias; rank * (inputs + outputs) for
each expert of target_parameters; modules_to_save and the rows of trainable_tokens whole. Merged into the weights it
costs nothing in use.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.methods import lora_places as places
from peftctl.methods import lora_start as start
from peftctl.methods.contract import Anatomy, BaseName, DataFacts, LowRank, MethodSettings
from peftctl.methods.experts import STARTS
from peftctl.methods.lora_plan import plan
from peftctl.methods.lora_settings import DORA_IN_8_BITS, FROM_WEIGHTS, PLAIN, LoraSettings
from peftctl.methods.names import matches
from peftctl.methods.peft_method import CONFIG, PeftMethod, transposed

__all__ = ["METHOD", "Lora", "LoraSettings"]


@dataclass(frozen=True)
class Lora(PeftMethod):
    name: str = "lora"
    peft_type: str = "LORA"
    settings: type[MethodSettings] = LoraSettings
    # Ten times the usual rate of full fine-tuning (1e-5 to 2e-5), as "LoRA Without Regret" (Schulman et al. 2025)
    # found best over models and data sets.
    learning_rate: float = 2e-4

    def contradictions(self, settings: LoraSettings) -> Iterator[tuple[str, str, str]]:
        return places.contradictions(settings)

    def resolve(self, settings: LoraSettings) -> LoraSettings:
        self.refuse(settings)
        if settings.alpha is not None:
            return settings
        return settings.model_copy(update={"alpha": 2.0 * settings.rank})

    def targetable(self, model: Any) -> Mapping[str, tuple[int, int]]:
        return places.targetable(model)

    def narrow(
        self, model: Any, settings: LoraSettings, matched: Mapping[str, tuple[int, int]]
    ) -> Mapping[str, tuple[int, int]]:
        return places.narrowed(model, settings, matched)

    def beside(self, model: Any, settings: LoraSettings) -> Mapping[str, tuple[int, ...]]:
        shapes = {
            f"{name}.{last}": tuple(parameter.shape)
            for name in places.trained_whole(model, settings)
            for last, parameter in model.get_submodule(name).named_parameters()
        }
        if settings.trainable_tokens:
            name, ids = places.tokens(model, settings)
            shapes[f"{name}.weight"] = (len(ids), model.get_submodule(name).embedding_dim)
        return shapes | places.adapted_parameters(model, settings)

    def config(self, model: Any, settings: LoraSettings, targets: Sequence[str], facts: DataFacts) -> Mapping[str, Any]:
        return {**plan(model, settings, targets).fields(), "fan_in_fan_out": transposed(model, targets)}

    def build(self, model: Any, settings: Any, targets: Sequence[str], peft_type: str, facts: DataFacts) -> Any:
        dtype, planned, embeddings = model.dtype, plan(model, settings, targets), places.embeddings(model)
        with _as_meant():
            peft_model = super().build(model, settings, targets, peft_type, facts)
        planned.verify(peft_model)
        base = peft_model.get_base_model()
        layers = {name: base.get_submodule(name) for name in targets}
        start.begin({name: layer for name, layer in layers.items() if name not in embeddings}, settings.init)
        if settings.dora:
            start.measure(layers.values())
        _keep_dtype(base, dtype)
        return peft_model

    def trains_own_layers(self, settings: LoraSettings) -> bool:
        return bool(settings.modules_to_save)

    def rate(self, settings: LoraSettings, name: str) -> float:
        return settings.loraplus or 1.0 if ".lora_B." in name else 1.0

    def save(self, model: Any, settings: Any, base: BaseName, folder: Path) -> None:
        with _as_meant():
            super().save(model, settings, base, folder)
        if self.rounds(settings):
            start.join(model.get_base_model(), folder, settings.rslora)

    def rounds(self, settings: LoraSettings) -> bool:
        return settings.init in FROM_WEIGHTS

    def needs_base(self, settings: Any, folder: Path) -> str:
        """Another tool's adapter may belong to what its start has left of the base's weights."""
        start_of = json.loads((folder / CONFIG).read_text("utf-8")).get("init_lora_weights", True)
        return "" if start_of in STARTS else f"its start ({start_of}) changes the base's own weights"

    def reads_in_place(self, model: Any, settings: Any, folder: Path) -> bool:
        import torch

        return model.dtype == torch.float32 and not self.needs_base(settings, folder)

    def load(self, model: Any, settings: Any, folder: Path) -> Any:
        dtype = model.dtype
        with _as_meant():
            peft_model = super().load(model, settings, folder)
        _read_in_float32(peft_model, folder)
        _keep_dtype(peft_model.get_base_model(), dtype)
        return peft_model.requires_grad_(False)

    def start_clash(self, settings: LoraSettings) -> tuple[str, str, str] | None:
        if settings.init == "default":
            return None
        # What a start from weights has left is a plain LoRA, of the rank r in its adapter_config.json.
        problem = f"{settings.init} says what to start from, and so does train.init_from"
        return "method.init", problem, "init default"

    def clash(self, settings: LoraSettings, bits: int) -> tuple[str, str, str] | None:
        if settings.init in FROM_WEIGHTS:
            return "init", f"{settings.init} starts from weights that are not rounded", f"init {PLAIN}"
        if settings.dora and bits == 8:
            return "dora", DORA_IN_8_BITS, "4 bits, or dora false"
        return None

    def parameters(self, settings: LoraSettings, anatomy: Anatomy) -> int:
        ranks, outputs_more = settings.rank_pattern or {}, settings.dora + settings.lora_bias
        count = 0
        for name, (inputs, outputs) in anatomy.targets.items():
            count += _number(ranks, name, settings.rank) * (inputs + outputs) + outputs_more * outputs
        for name, shape in anatomy.beside.items():
            if _is_adapted(settings, name):
                *experts, outputs, inputs = shape
                count += math.prod(experts) * _number(ranks, name, settings.rank) * (inputs + outputs)
            else:
                count += math.prod(shape)
        return count

    def low_rank(self, layer: Any) -> LowRank | None:
        from peft.tuners.lora import Linear

        if type(layer) is not Linear or layer.merged or len(layer.active_adapters) != 1:
            return None
        (name,) = layer.active_adapters
        known = name in layer.lora_A and not getattr(layer.lora_dropout[name], "p", 0.0) and not layer.fan_in_fan_out
        if not known or name in layer.lora_variant or layer.lora_B[name].bias is not None:
            return None
        return LowRank(layer.lora_A[name].weight, layer.lora_B[name].weight, float(layer.scaling[name]))


def _number(pattern: Mapping[str, int], name: str, otherwise: int) -> int:
    return next((number for entry, number in pattern.items() if matches(entry, name)), otherwise)


def _is_adapted(settings: LoraSettings, name: str) -> bool:
    """Whether the model's parameter ``name``, one beside the targets, gets an adapter and is not trained itself."""
    parts = name.split(".")
    modules = [".".join(parts[:end]) for end in range(1, len(parts))]
    whole = any(matches(entry, module) for entry in settings.modules_to_save for module in modules)
    return not whole and any(matches(entry, name) for entry in settings.target_parameters)


def _read_in_float32(peft_model: Any, folder: Path) -> None:
    """Read again what PEFT read in the base's 16 bits: embeddings' updates and tokens' rows."""
    import torch
    from peft import load_peft_weights, set_peft_model_state_dict

    read = [p for name, p in peft_model.named_parameters() if ".lora_" in name or ".trainable_tokens_" in name]
    rounded = [parameter for parameter in read if parameter.dtype != torch.float32]
    for parameter in rounded:
        parameter.data = parameter.data.to(torch.float32)
    if rounded:
        set_peft_model_state_dict(peft_model, load_peft_weights(str(folder), device="cpu"))


def _keep_dtype(base_model: Any, dtype: Any) -> None:
    """Have modules that are trained whole, in float32, put out what they put out before: embeddings and norms are no
    products, which autocast would bring back."""
    from peft.utils.other import ModulesToSaveWrapper

    def keep(module: Any, inputs: Any, outputs: Any) -> Any:
        return outputs.to(dtype) if hasattr(outputs, "to") and outputs.is_floating_point() else outputs

    for module in base_model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.register_forward_hook(keep)


# What PEFT warns of although it is as it should be.
AS_MEANT = (
    "The following (rank|alpha)_pattern keys did not match any targeted module",  # those of target_parameters
    "`lora_bias=True` was passed but the targeted layer",  # the setting says where it merges
    r"Adapter 'default': \d+ LoRA tensor\(s\) have invalid shape: .*lora_B.bias",  # a bias has one dimension
)


@contextmanager
def _as_meant() -> Iterator[None]:
    with warnings.catch_warnings():
        for text in AS_MEANT:
            warnings.filterwarnings("ignore", text)
        yield


METHOD = Lora()
