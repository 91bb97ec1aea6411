"""A recipe with its open choices made: what depends on nothing but the recipe, then what the model decides."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from peftctl.methods import METHODS
from peftctl.recipe.schema import EvalSource, Recipe

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
    sources = tuple(source.model_copy(update={"path": str(recipe.path(source.path))}) for source in recipe.data.train)
    held_out: EvalSource | None = recipe.data.eval
    if held_out is not None and held_out.path is not None:
        held_out = held_out.model_copy(update={"path": str(recipe.path(held_out.path))})
    recipe = recipe.with_settings("data", PATH, train=sources, eval=held_out)
    return recipe.with_settings("method", f"default for {method.name}", **method.resolve(recipe.method).model_dump())


def resolve_data(recipe: Recipe, sha256: Callable[[Path], str]) -> Recipe:
    """Every data file pinned to what it holds."""
    train = tuple(source.model_copy(update={"sha256": sha256(Path(source.path))}) for source in recipe.data.train)
    held_out = recipe.data.eval
    if held_out is not None and held_out.path is not None:
        held_out = held_out.model_copy(update={"sha256": sha256(Path(held_out.path))})
    return recipe.with_settings("data", "from the files", train=train, eval=held_out)


def resolve_model(
    recipe: Recipe, *, name: str, commit: str | None, dtype: str, max_length: int, micro_batch_tokens: int
) -> Recipe:
    """What the model and the machine decide."""
    recipe = recipe.with_settings("model", "found there", name=name, revision=commit)
    recipe = recipe.with_settings("model", "from the hardware", dtype=dtype)
    recipe = recipe.with_settings("data", "from the model", max_length=max_length)
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
