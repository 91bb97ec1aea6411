"""What the methods that PEFT builds have in common: settings become fields of its config, the rest are defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftctl.atomic import write_json
from peftctl.methods import continued
from peftctl.methods.contract import Anatomy, BaseName, DataFacts, MethodSettings
from peftctl.methods.defaults import Defaults
from peftctl.methods.parts import heads

CONFIG = "adapter_config.json"
WHOLE = "modules_to_save"
SETS = ("target_modules", "feedforward_modules", "modules_to_save", "target_parameters")


@dataclass(frozen=True)
class PeftMethod(Defaults):
    """A method that PEFT has. ``parameters`` is each method's own."""

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
        if whole := self._whole(model):
            fields[WHOLE] = sorted({*(fields.get(WHOLE) or ()), *whole})
        return get_peft_model(model, PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.peft_type)](**fields))

    def _whole(self, model: Any) -> tuple[str, ...]:
        """The heads that PEFT can be asked to train and save with the method: not with all methods."""
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType

        fields = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.peft_type)].__dataclass_fields__
        return heads(model) if WHOLE in fields else ()

    def parameters(self, settings: Any, anatomy: Anatomy) -> int:
        raise NotImplementedError

    def _before_rows(self) -> bool:
        """Whether it is one of those that put something before rows, which PEFT cannot read for training."""
        from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, PromptLearningConfig

        return issubclass(PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(self.peft_type)], PromptLearningConfig)

    def loads_with(self, settings: Any) -> Literal["peft", "peftctl", "transformers"]:
        return "peft"

    def beside(self, model: Any, settings: Any) -> Mapping[str, tuple[int, ...]]:
        return {}

    def trains_own_layers(self, settings: Any) -> bool:
        return False

    def save(self, model: Any, settings: Any, base: BaseName, folder: Path) -> None:
        """As plain PEFT loads it, with the base named as plain PEFT needs it."""
        for config in model.peft_config.values():
            config.base_model_name_or_path = base.name
            config.revision = base.commit
        model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        _sort_sets(folder / CONFIG)

    def reads_in_place(self, model: Any, settings: Any, folder: Path) -> bool:
        """Whether what it puts into ``model`` may stay in the file, mapped, instead of being made first and read into.

        Not where the model has 16 bits, to which PEFT then rounds it.
        """
        return False

    def load(self, model: Any, settings: Any, folder: Path) -> Any:
        import torch
        from peft import PeftModel, load_peft_weights, set_peft_model_state_dict

        if not (self.trains_own_layers(settings) or self._whole(model)) or self._before_rows():
            in_place = self.reads_in_place(model, settings, folder)
            return PeftModel.from_pretrained(model, folder, low_cpu_mem_usage=in_place)
        # PEFT reads copies of the model's own layers in the model's dtype; they were trained in float32.
        peft_model = PeftModel.from_pretrained(model, folder, is_trainable=True)
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32)
        set_peft_model_state_dict(peft_model, load_peft_weights(str(folder), device="cpu"))
        return peft_model.requires_grad_(False).eval()

    def start_from(self, model: Any, settings: Any, folder: Path) -> None:
        from peft import get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict

        words = {field: name for name, field in peft_names(type(settings)).items()}
        continued.check_config(model, folder / CONFIG, self.name, words)
        weights = load_peft_weights(str(folder), device="cpu")
        continued.check_tensors(weights, get_peft_model_state_dict(model, save_embedding_layers=False), folder)
        set_peft_model_state_dict(model, weights)


def own_fields(settings: MethodSettings) -> dict[str, Any]:
    """The settings that are fields of PEFT's config, by its names."""
    return {field: getattr(settings, name) for name, field in peft_names(type(settings)).items()}


def peft_names(settings: type[MethodSettings]) -> dict[str, str]:
    """Of the settings that are fields of PEFT's config, its names for them."""
    extras = {name: declared.json_schema_extra for name, declared in settings.model_fields.items()}
    return {name: str(extra["peft"]) for name, extra in extras.items() if isinstance(extra, dict) and "peft" in extra}


def transposed(model: Any, targets: Sequence[str]) -> bool:
    """Whether the targets are GPT-2's Conv1D, whose weights are stored the other way round."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(model.get_submodule(name), Conv1D) for name in targets)


def _sort_sets(path: Path) -> None:
    """Names that PEFT keeps as a set come in another order in every process; the same run leaves the same bytes."""
    config = json.loads(path.read_text("utf-8"))
    for key in SETS:
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    write_json(path, config)
