"""Where a base model is: a folder, a GGUF file turned into one, or the hub's copy of one in the cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peftctl.errors import UsageError
from peftctl.model import gguf, hub
from peftctl.nearest import nearest
from peftctl.recipe.origin import is_local_model
from peftctl.recipe.schema import ModelSettings, Recipe


@dataclass(frozen=True)
class Base:
    """A base model on this machine.

    ``name`` is what plain peft is to load it by: the hub id, or the absolute folder. ``commit`` is the hub's;
    ``source`` the file that the folder was made from.
    """

    name: str
    folder: Path
    origin: Literal["folder", "gguf", "hub"]
    commit: str | None = None
    source: Path | None = None


def locate(recipe: Recipe, note: Callable[[str], None], *, weights: bool = True) -> Base:
    """The folder of the recipe's model; see ``find``."""
    return find(recipe.model, recipe.path(recipe.model.name), note, weights=weights)


def find(model: ModelSettings, path: Path, note: Callable[[str], None], *, weights: bool = True) -> Base:
    """The folder of ``model``, fetched or converted if need be; ``path`` is where it is if it is here. ``note`` hears
    what takes time.

    Without ``weights`` a hub model's are not fetched.

    Raises UsageError where there is no such model or it holds only pickles, MachineError where it cannot be had.
    """
    name, revision = model.name, model.revision
    if not is_local_model(name, path):
        snapshot = hub.fetch(name, revision, note=note, code=model.trust_remote_code, weights=weights)
        return Base(name, snapshot.folder, "hub", snapshot.commit)
    if revision is not None:
        raise UsageError(f"model.revision: has no effect on a local model (found {revision!r} for {path})")
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise UsageError(f"model.name: no such file or folder: {path}", f"did you mean {near}?" if near else "")
    if path.is_dir():
        _check_folder(path)
        return Base(str(path.resolve() if ".." in path.parts else path), path, "folder")
    if path.suffix.lower() != ".gguf":
        raise UsageError(f"model.name: {path} is neither a folder nor a .gguf file")
    folder = gguf.plain_folder(path, note)
    return Base(str(folder), folder, "gguf", source=path)


def _check_folder(path: Path) -> None:
    if (path / "adapter_config.json").exists() and not (path / "config.json").exists():
        raise UsageError(f"model.name: {path} holds an adapter, not a model", "name the adapter's base model")
    if not (path / "config.json").exists():
        raise UsageError(f"model.name: {path} holds no config.json, so it is no model folder")
    if any(path.glob("*.safetensors")):
        return
    pickled = sorted(file.name for pattern in hub.PICKLES for file in path.glob(pattern))
    if pickled:
        raise UsageError(
            f"model.name: {path} holds its weights as {pickled[0]}, and loading a pickle can run any code",
            "convert it to safetensors, or take a revision that has them",
        )
    raise UsageError(f"model.name: {path} holds no *.safetensors, so there are no weights to load")
