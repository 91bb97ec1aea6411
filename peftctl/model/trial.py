"""A recipe tried on its model before anything is trained: the model's architecture is built, without its weights."""

from __future__ import annotations

from collections.abc import Callable

from peftctl.methods import METHODS
from peftctl.model import load, preflight, prequantized
from peftctl.model.locate import locate
from peftctl.recipe import able, resolve
from peftctl.recipe.schema import Recipe
from peftctl.tasks import task_of


def trial(recipe: Recipe, note: Callable[[str], None]) -> None:
    """Try whether the recipe's method goes into its model with all that the method's settings name there.

    A hub model's config is fetched, a GGUF file is left alone; ``note`` hears that, and what cannot be told without
    weights. Raises UsageError as training does before weights are read, MachineError where something is missing here.
    """
    if recipe.model.name.lower().endswith(".gguf"):
        note(f"{recipe.model.name}: not tried, since a GGUF file has to be converted first, as train does")
        return
    recipe = resolve.resolve(recipe)
    base = locate(recipe, note, weights=False)
    config = load.load_config(base, recipe.model)
    recipe = resolve.resolve_machine(recipe, dtype=load.choose_dtype(recipe.model.dtype))
    able.judge(recipe, config.model_type)
    method, task = METHODS[recipe.method.name], task_of(recipe.task)
    prequantized.check(config, base.name, recipe.model, method, recipe.method, note)
    preflight.check(base.name, config, task, method, recipe.method, note, again=True)
