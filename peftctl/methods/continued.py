"""Whether the adapter that a run is to go on from is one of the same make."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError

SETTING = "train.init_from"
# What says where an adapter comes from, how it began, or how it was trained, not what it is. Where it goes and of what
# size is read from its tensors.
NO_MATTER = {
    "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "runtime_config",
    "target_modules", "feedforward_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "rank_pattern", "fan_in_fan_out", "total_step", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight",
    "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "megatron_core",
}  # fmt: skip


def read_config(path: Path) -> dict[str, Any]:
    """An adapter's config. Raises UsageError where there is none."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        raise UsageError(
            f"{SETTING}: {path.parent} holds no {path.name} that can be read, so it is no adapter"
        ) from None
    if not isinstance(found, dict):
        raise UsageError(f"{SETTING}: {path} is no JSON object")
    return found


def check_config(model: Any, path: Path, method: str, words: Mapping[str, str]) -> None:
    """Raises UsageError naming every setting that makes another thing of the tensors than ``model``'s own config.
    ``words``: what a recipe calls the fields of PEFT's config, where it has a word for them.
    """
    there = read_config(path)
    (config,) = model.peft_config.values()
    here = json.loads(json.dumps(config.to_dict(), default=_plain))
    if there.get("peft_type") != here["peft_type"]:
        raise UsageError(f"{SETTING}: {path.parent} is {there.get('peft_type')}, which {method} cannot go on from")
    differing = [
        f"{words.get(name, name)} is {there[name]!r} there and {here[name]!r} here"
        for name in sorted(here.keys() & there.keys() - NO_MATTER)
        if there[name] != here[name] and not name.startswith("init_") and "dropout" not in name
    ]
    if differing:
        raise UsageError(f"{SETTING}: {path.parent} has other settings: {'; '.join(differing)}")


def check_tensors(found: Mapping[str, Any], expected: Mapping[str, Any], folder: Path) -> None:
    """Raises UsageError where tensors are missing, not wanted, or of another shape."""
    odd = [f"{name} is missing" for name in expected if name not in found]
    odd += [f"{name} has no place here" for name in found if name not in expected]
    odd += [
        f"{name} is {tuple(found[name].shape)} there and {tuple(expected[name].shape)} here"
        for name in expected.keys() & found.keys()
        if found[name].shape != expected[name].shape
    ]
    if odd:
        more = f", and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise UsageError(f"{SETTING}: {folder} does not fit: {'; '.join(sorted(odd)[:3])}{more}")


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | frozenset) else str(getattr(value, "value", value))
