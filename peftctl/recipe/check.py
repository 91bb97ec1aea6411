"""A recipe judged as far as its text and a look at the model's config go, without any heavy import."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from peftctl.errors import Fault, PeftctlError, RecipeError, UsageError
from peftctl.nearest import nearest
from peftctl.recipe import nodes
from peftctl.recipe.able import refusals
from peftctl.recipe.compose import compose
from peftctl.recipe.load import build
from peftctl.recipe.nodes import Document, dotted
from peftctl.recipe.origin import is_local_model
from peftctl.recipe.schema import SECTIONS, Recipe
from peftctl.tables import table

# What makes a folder a run's, or an adapter's.
STARTS = ("manifest.json", "adapter_config.json")


def check(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in ``path``. Raises RecipeError with every fault of its text, of what it combines, and of the model
    and the folders that it names, as far as those can be told without opening them.
    """
    document = compose(path, overrides)
    recipe = build(document, path.absolute().parent)
    config = _config(recipe)
    family = config.get("model_type")
    faults = [
        *_combined(document, recipe, family if isinstance(family, str) else None),
        *_model(document, recipe),
        *_starts(document, recipe),
        *_model_and_task(document, recipe, config),
    ]
    if faults:
        raise RecipeError(faults)
    return recipe


def placed(error: PeftctlError, path: Path, overrides: Sequence[str] = ()) -> RecipeError:
    """What was found wrong with the recipe in ``path`` elsewhere, as faults at the settings that its lines begin with,
    or else at the model.
    """
    document, end = compose(path, overrides), f"; {error.hint}" if error.hint else ""
    faults = []
    for line in error.message.splitlines():
        key, _, problem = line.partition(": ")
        if not problem or key.split(".")[0] not in SECTIONS:
            key, problem = "model.name", line
        faults.append(Fault(document.place(tuple(key.split("."))), key, problem + end))
    return RecipeError(faults)


def _config(recipe: Recipe) -> dict[str, Any]:
    """What the model's config says, where it is a folder that is there; else nothing."""
    try:
        found = json.loads((recipe.path(recipe.model.name) / "config.json").read_text("utf-8"))
    except (UsageError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _combined(document: Document, recipe: Recipe, family: str | None) -> list[Fault]:
    """What does not go together, by the table made with the pinned versions."""
    return [
        Fault(
            document.place(found.path),
            dotted(found.path),
            found.problem,
            "",
            found.allowed,
            also=document.place(found.also) if found.also else None,
        )
        for found in refusals(recipe, family)
    ]


def _model(document: Document, recipe: Recipe) -> Iterator[Fault]:
    """Whether the model is there, where it is named as a path."""
    name, place = recipe.model.name, document.place(("model", "name"))
    try:
        path = recipe.path(name)
    except UsageError as error:
        yield Fault(place, "model.name", error.message)
        return
    if not is_local_model(name, path):
        return
    if not path.exists():
        yield Fault(place, "model.name", "no such file or folder", repr(name), nearest=_near(path))
    elif path.is_dir() and not (path / "config.json").exists():
        adapter = (path / "adapter_config.json").exists()
        problem = "holds an adapter, not a model" if adapter else "holds no config.json, so it is no model folder"
        yield Fault(place, "model.name", problem, repr(name))


def _starts(document: Document, recipe: Recipe) -> Iterator[Fault]:
    """Whether the runs and adapters are there that this one is to go on from, or is made of."""
    named: list[tuple[nodes.Path, str]] = []
    if recipe.train.init_from is not None:
        named.append((("train", "init_from"), recipe.train.init_from))
    for setting in type(recipe.method).paths:
        named += [(("method", setting, at), each) for at, each in enumerate(getattr(recipe.method, setting))]
    for where, written in named:
        try:
            path = recipe.path(written)
        except UsageError as error:
            yield Fault(document.place(where), dotted(where), error.message)
            continue
        if not path.is_dir():
            yield Fault(document.place(where), dotted(where), "no such folder", repr(written), nearest=_near(path))
        elif not any((path / name).exists() or (path.parent / name).exists() for name in STARTS):
            problem = "is neither a finished run nor an adapter's folder"
            yield Fault(document.place(where), dotted(where), problem, repr(written))


def _near(path: Path) -> str:
    """What stands beside a missing path and is called nearly as it."""
    try:
        return nearest(path.name, [each.name for each in path.parent.iterdir()])
    except OSError:
        return ""


def _model_and_task(document: Document, recipe: Recipe, config: dict[str, Any]) -> list[Fault]:
    """Whether transformers has a class for this kind of model and task, where the model is a folder that is there."""
    place, types = document.place(("model", "name")), table("model_types")
    found, known = config.get("model_type"), types["tasks"][recipe.task.name]
    if not isinstance(found, str) or "auto_map" in config:
        return []
    if found not in known:
        problem = f"transformers {types['transformers']} has no {recipe.task.name} model of this type"
        return [Fault(place, "model.name", problem, found, nearest=nearest(found, known))]
    if found in types["encoders"].get(recipe.task.name, ()) and config.get("is_decoder") is not True:
        problem = f"lets tokens see those after them, and {recipe.task.name} learns each from those before it"
        return [Fault(place, "model.name", problem, found, "a model whose config.json says is_decoder: true")]
    return []
