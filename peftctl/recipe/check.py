"""A recipe judged as far as its text and a look at the model's config go, without any heavy import."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from peftctl.errors import Fault, RecipeError, UsageError
from peftctl.nearest import nearest
from peftctl.recipe.able import refusals
from peftctl.recipe.compose import compose
from peftctl.recipe.load import build
from peftctl.recipe.nodes import Document, dotted
from peftctl.recipe.schema import Recipe
from peftctl.tables import table


def check(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in ``path``. Raises RecipeError with every fault of its text and of what it combines."""
    document = compose(path, overrides)
    recipe = build(document, path.absolute().parent)
    family = _family(recipe)
    faults = [*_combined(document, recipe, family), *_model_and_task(document, recipe)]
    if faults:
        raise RecipeError(faults)
    return recipe


def _family(recipe: Recipe) -> str | None:
    """The ``model_type`` that the model's config names, where it is a folder that is there."""
    try:
        found = json.loads((recipe.path(recipe.model.name) / "config.json").read_text("utf-8"))["model_type"]
    except (UsageError, OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None


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


def _model_and_task(document: Document, recipe: Recipe) -> list[Fault]:
    """Whether transformers has a class for this kind of model and task, where the model is a folder that is there."""
    place = document.place(("model", "name"))
    try:
        config = json.loads((recipe.path(recipe.model.name) / "config.json").read_text("utf-8"))
        found = config["model_type"]
    except UsageError as error:
        return [Fault(place, "model.name", error.message)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    known = table("model_types")["tasks"][recipe.task.name]
    if not isinstance(found, str) or found in known or "auto_map" in config:
        return []
    problem = f"transformers {table('model_types')['transformers']} has no {recipe.task.name} model of this type"
    return [Fault(place, "model.name", problem, found, nearest=nearest(found, known))]
