"""What a path or a name stands for, told from names and first bytes: nothing is loaded, nothing below is searched."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peftctl.errors import UsageError
from peftctl.inspection import bounded
from peftctl.inspection.own import NAME as OWN
from peftctl.nearest import nearest

Kind = Literal["hub", "model", "config", "gguf", "adapter", "own", "run", "checkpoint"]
MODELS = ("hub", "model", "config", "gguf")
HUB_ID = re.compile(r"[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?")
CONFIG, ADAPTER_CONFIG, ADAPTER_WEIGHTS = "config.json", "adapter_config.json", "adapter_model.safetensors"
# What a run has beside the recipe from its first second on; a recipe alone may stand in anybody's folder.
RUN, RECIPE, MANIFEST = {"resolved.yaml", "environment.json", "metrics.jsonl", ".lock"}, "recipe.yaml", "manifest.json"
# What trainers keep so as to go on: what a name is, or begins with.
TRAINER = (
    "trainer_state.json", "optimizer.pt", "optimizer.bin", "optimizer.safetensors", "scheduler.pt", "scheduler.bin",
    "random_states_", "rng_state", ".metadata", "history.safetensors",
)  # fmt: skip
NO_CODE = "reading a pickle can run any code, so none is ever opened"
KNOWN = "a model folder, a config.json, a .gguf file, an adapter folder, a run directory, a checkpoint, or a hub id"


@dataclass(frozen=True)
class What:
    """What ``name`` stands for. ``path`` is the folder, or for ``config`` and ``gguf`` the file; "" for a hub id."""

    kind: Kind
    name: str
    path: Path


def decide(name: str) -> What:
    """Raises UsageError where there is no such thing, or it is nothing that can be inspected."""
    try:
        path = Path(name).expanduser()
    except RuntimeError:
        raise UsageError(f"{name}: there is no such user") from None
    if not name or not os.path.lexists(path):
        return What("hub", name, Path()) if _may_be_hub_id(name, path) else _missing(name, path)
    if path.is_dir():
        return _folder(name, path)
    bounded.size_of(path)  # says what is wrong with a link, a pipe or a device
    return _file(name, path)


def _may_be_hub_id(name: str, path: Path) -> bool:
    """Whether what is not here may be on the hub. ``runs/fist`` is not, where there is a folder ``runs``."""
    local = name.startswith((".", "/", "~")) or path.suffix.lower() in (".gguf", ".json", ".safetensors", ".yaml")
    return not local and bool(HUB_ID.fullmatch(name)) and ("/" not in name or not path.parent.is_dir())


def _missing(name: str, path: Path) -> What:
    near = beside(path)
    raise UsageError(f"{name or repr(name)}: no such file or folder", f"did you mean {near}?" if near else "")


def beside(path: Path) -> Path | None:
    """What stands where ``path`` is missing and is called most like it."""
    try:
        near = nearest(path.name, bounded.names(path.parent))
    except UsageError:
        return None
    return path.with_name(near) if near else None


def _folder(name: str, path: Path) -> What:
    there = set(bounded.names(path))
    whole = CONFIG in there and any(each.endswith(".safetensors") for each in there - {ADAPTER_WEIGHTS})
    goes_on = any(each.startswith(TRAINER) for each in there)
    if ADAPTER_CONFIG in there and not whole:
        return What("checkpoint" if goes_on else "adapter", name, path)
    if OWN in there:
        return What("own", name, path)
    # A checkpoint of peftctl's has its recipe in it too.
    if not (goes_on and "state.json" in there) and ("resolved.yaml" in there or (RECIPE in there and there & RUN)):
        return What("run", name, path)
    if goes_on:
        return What("checkpoint", name, path)
    if CONFIG in there:
        return What("model", name, path)
    if MANIFEST in there:
        return What("run", name, path)
    if any(each.startswith("checkpoint-") for each in there):
        return What("checkpoint", name, path)
    ggufs = sorted(each for each in there if each.lower().endswith(".gguf"))
    if len(ggufs) == 1:
        return _file(name, path / ggufs[0])
    if ggufs:
        raise UsageError(f"{path} holds {len(ggufs)} .gguf files", f"name one of them: {path / ggufs[0]}")
    raise UsageError(f"{path} holds nothing that can be inspected ({_listed(there)})", f"allowed: {KNOWN}")


def _listed(there: Collection[str]) -> str:
    some = sorted(there)[:4]
    return f"found {', '.join(some)}{', ...' if len(there) > len(some) else ''}" if some else "it is empty"


def _file(name: str, path: Path) -> What:
    with bounded.opened(path) as file:
        first = file.read(4)
    suffix = path.suffix.lower()
    if first == b"GGUF":
        return What("gguf", name, path)
    if suffix == ".gguf":
        raise UsageError(f"{path} is not a GGUF file (it does not begin with GGUF)")
    if suffix in bounded.PICKLES or first[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        raise UsageError(
            f"{path} is a pickle, and {NO_CODE}", "name a folder that holds safetensors, or its config.json"
        )
    if suffix == ".json":
        return _json(name, path)
    if suffix == ".safetensors" and path.name == ADAPTER_WEIGHTS:
        return What("adapter", name, path.parent)
    if suffix == ".safetensors" and bounded.is_file(path.with_name(CONFIG)):
        return What("model", name, path.parent)
    if suffix in (".yaml", ".yml"):
        raise UsageError(f"{path} is a recipe", f"peftctl check {path}")
    raise UsageError(f"{path} is nothing that can be inspected", f"allowed: {KNOWN}")


def _json(name: str, path: Path) -> What:
    if path.name == ADAPTER_CONFIG:
        return What("adapter", name, path.parent)
    if path.name == OWN:
        return What("own", name, path.parent)
    found = bounded.json_object(path)
    if "model_type" in found:
        return What("config", name, path)
    if path.name == MANIFEST and found.get("kind") == "run":
        return What("run", name, path.parent)
    raise UsageError(f"{path} is no config of a model: it names no model_type", f"allowed: {KNOWN}")
