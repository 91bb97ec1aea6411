"""Trained LoRA adapters as parts of a mixture: found, read, and judged against the model that they are to go into."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.atomic import write_json
from peftctl.errors import UsageError
from peftctl.nearest import nearest

SETTING = "method.adapters"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAMED = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# What an adapter is made of, by PEFT's names.
MADE_OF = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "lora_dropout")
# What says where it came from, or what its tensors say better.
NO_MATTER = (
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
    "runtime_config", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_core",
    "fan_in_fan_out", "init_lora_weights", "eva_config", "qalora_group_size",
)  # fmt: skip
# Other starts may change the base's weights, and the adapter belongs to what is left of them.
STARTS = (True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Expert:
    """A LoRA adapter: what of its ``config`` it is made of, and its ``tensors`` by layer, A [rank, inputs] and
    B [outputs, rank]. ``where`` it was read from.
    """

    where: Path
    task: str
    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[Any, Any]]


def read(paths: Sequence[str]) -> list[Expert]:
    """The adapters in ``paths``, each a run's directory or an adapter's folder.

    Raises UsageError where one is no LoRA adapter, has more than LoRA's two matrices, or is named twice.
    """
    folders = [_folder(Path(path)) for path in paths]
    if len(folders) < 2:
        raise UsageError(f"{SETTING}: a mixture is of two adapters at least (found {len(folders)})")
    for number, folder in enumerate(folders):
        if folder.resolve() in [other.resolve() for other in folders[:number]]:
            raise UsageError(f"{SETTING}: {folder} is named twice")
    return [_read(folder) for folder in folders]


def check(experts: Sequence[Expert], model: Any) -> None:
    """Raises UsageError where an adapter does not go into ``model``, a base as it comes."""
    modules, kind = dict(model.named_modules()), type(model).__name__
    for expert in experts:
        where = f"{SETTING}: {expert.where}"
        for name, (down, up) in expert.tensors.items():
            module = modules.get(name)
            if module is None:
                raise UsageError(f"{where} changes {name}, which this {kind} does not have")
            _check_layer(name, module, kind)
            here, there = (module.in_features, module.out_features), (down.shape[1], up.shape[0])
            if here != there:
                sizes = f"{there[0]} to {there[1]} there, {here[0]} to {here[1]} here"
                raise UsageError(f"{where} was trained on another model: {name} goes from {sizes}")


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, tuple[Any, Any]], **named: Any) -> None:
    """An adapter as plain PEFT loads it, into the new ``folder``. ``named``: further fields of its config."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    flat = {
        f"base_model.model.{name}.lora_{part}.weight": tensor.detach().contiguous()
        for name, pair in tensors.items()
        for part, tensor in zip("AB", pair, strict=True)
    }
    save_file(flat, folder / WEIGHTS, metadata={"format": "pt"})
    made = LoraConfig(**{**config, **named, "inference_mode": True}).to_dict()
    write_json(folder / CONFIG, {**made, "target_modules": sorted(tensors)})


def _folder(path: Path) -> Path:
    if not path.is_dir():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise UsageError(f"{SETTING}: no such folder: {path}", f"did you mean {path.with_name(near)}?" if near else "")
    folder = path / "adapter" if (path / "manifest.json").exists() else path
    if not (folder / CONFIG).exists():
        raise UsageError(
            f"{SETTING}: {path} is neither a run that left an adapter of PEFT nor such an adapter's folder"
        )
    if not (folder / WEIGHTS).exists():
        raise UsageError(f"{SETTING}: {folder} holds no {WEIGHTS}")
    return folder


def _read(folder: Path) -> Expert:
    from safetensors.torch import load_file

    config = _read_config(folder / CONFIG)
    if config.get("peft_type") != "LORA":
        raise UsageError(f"{SETTING}: {folder} is {config.get('peft_type')}; allowed: LORA")
    _check_plain(folder, config)
    halves: dict[str, dict[str, Any]] = {}
    for key, tensor in load_file(folder / WEIGHTS).items():
        named = NAMED.fullmatch(key)
        if named is None:
            raise UsageError(f"{SETTING}: {folder} holds {key}, which is none of LoRA's two matrices of a linear layer")
        halves.setdefault(named[1], {})[named[2]] = tensor
    if lacking := [name for name, parts in halves.items() if parts.keys() != {"A", "B"}]:
        raise UsageError(f"{SETTING}: {folder} holds one of the two matrices of {lacking[0]} alone")
    if not halves:
        raise UsageError(f"{SETTING}: {folder} changes no layer")
    tensors = {name: (parts["A"], parts["B"]) for name, parts in halves.items()}
    return Expert(
        folder, str(config.get("task_type")), {name: config[name] for name in MADE_OF if name in config}, tensors
    )


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UsageError(f"{SETTING}: {path} is no JSON object that can be read")
    return found


def _check_plain(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises UsageError naming what an adapter has beyond LoRA's two matrices."""
    from peft import LoraConfig

    plain = LoraConfig().to_dict()
    odd = [
        f"{name} is {value!r}"
        for name, value in config.items()
        if name not in (*MADE_OF, *NO_MATTER) and value and value != plain.get(name)
    ]
    if (start := config.get("init_lora_weights", True)) not in STARTS:
        odd.append(f"it started as {start}, which may change the base")
    if odd:
        raise UsageError(f"{SETTING}: {folder} is no plain LoRA: {'; '.join(odd[:3])}")


def _check_layer(name: str, module: Any, kind: str) -> None:
    """Raises UsageError where PEFT's X-LoRA cannot mix on this layer of the model."""
    from torch import nn

    if not name.startswith("model."):
        raise UsageError(f"method: xlora reaches only what lies below `model.` in PEFT, and {name} of {kind} does not")
    if not isinstance(module, nn.Linear):
        raise UsageError(f"method: xlora mixes on linear layers only, and {name} is {type(module).__name__} in {kind}")
    if not module.weight.is_floating_point():
        raise UsageError(f"method: xlora mixes on plain layers only, and {name} is quantised")
