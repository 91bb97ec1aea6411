"""A recipe with its open choices made: what depends on nothing but the recipe, then what the model decides."""

from __future__ import annotations

from collections.abc import Iterable

from peftctl.methods import METHODS
from peftctl.recipe.origin import origin
from peftctl.recipe.schema import Recipe
from peftctl.tasks import TASKS

DEFAULT_EPOCHS = 3.0
PATH = "made absolute"


def resolve(recipe: Recipe) -> Recipe:
    """Every default made explicit that follows from the recipe alone, and every path absolute.

    Resolving a resolved recipe changes nothing.
    """
    method = METHODS[recipe.method.name]
    train = recipe.train
    if train.epochs is None and train.max_steps is None:
        recipe = recipe.with_settings("train", "default", epochs=DEFAULT_EPOCHS)
    if train.learning_rate is None:
        recipe = recipe.with_settings("train", f"default for {method.name}", learning_rate=method.learning_rate)
    if recipe.data.overlong is None:
        task = TASKS[recipe.task.name]
        recipe = recipe.with_settings("data", f"default for {task.name}", overlong=task.overlong)
    if train.init_from is not None:
        recipe = recipe.with_settings("train", PATH, init_from=str(recipe.path(train.init_from)))
    paths = {name: getattr(recipe.method, name) for name in type(recipe.method).paths}
    absolutes = {name: tuple(str(recipe.path(each)) for each in written) for name, written in paths.items()}
    recipe = recipe.with_settings("method", PATH, **absolutes)
    recipe = recipe.with_sources(PATH, lambda source: {"path": absolute(recipe, str(source.path))})
    return recipe.with_settings("method", f"default for {method.name}", **method.resolve(recipe.method).model_dump())


def absolute(recipe: Recipe, path: str) -> str:
    """A data path that means the same in whatever folder the recipe stands."""
    return str(recipe.path(path)) if origin(recipe, path) == "file" else path


def resolve_model(recipe: Recipe, *, name: str, commit: str | None, max_length: int) -> Recipe:
    """What the model decides."""
    recipe = recipe.with_settings("model", "found there", name=name, revision=commit)
    return recipe.with_settings("data", "from the model", max_length=max_length)


def resolve_machine(recipe: Recipe, *, dtype: str) -> Recipe:
    """What the machine decides by what it computes with."""
    return recipe.with_settings("model", "from the hardware", dtype=dtype)


def resolve_memory(recipe: Recipe, *, micro_batch_tokens: int) -> Recipe:
    """What the machine decides by its memory."""
    return recipe.with_settings("train", "from the hardware", micro_batch_tokens=micro_batch_tokens)


def resolve_compile(recipe: Recipe, pays: bool) -> Recipe:
    """Whether torch.compile is used, where the recipe leaves it open."""
    fast = recipe.train.fast
    if fast.compile is not None:
        return recipe
    fast = fast.model_copy(update={"compile": pays and (fast.norm or fast.lora)})
    return recipe.with_settings("train", "compile: from machine and data", fast=fast)


def resolve_targets(recipe: Recipe, names: Iterable[str]) -> Recipe:
    """The targets as full module names."""
    return recipe.with_settings("method", "matched in the model", targets=tuple(names))
