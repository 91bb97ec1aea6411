"""What a recipe combines against what was seen to work, by the table made with the pinned versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peftctl.recipe.schema import Recipe
from peftctl.tables import table


@dataclass(frozen=True)
class Refusal:
    """A combination that does not work: the setting, why, what works instead, and the other setting it is about."""

    path: tuple[str, ...]
    problem: str
    allowed: str
    also: tuple[str, ...]


def refusals(recipe: Recipe) -> Iterator[Refusal]:
    """What of the recipe's method does not go with its task, its quantised base or its checkpointing.

    A method that the table does not have is not judged: trying it will tell.
    """
    methods: dict[str, Any] = table("capabilities")["methods"]
    name = recipe.method.name
    if name not in methods:
        return
    named = ("method", "name")
    tasks = methods[name]["tasks"]
    if (verdict := tasks.get(recipe.task.name, "yes")) != "yes":
        works = ", ".join(task for task, said in tasks.items() if said == "yes")
        problem = f"{name} does not work on {recipe.task.name}: {verdict}"
        yield Refusal(named, problem, f"tasks {works}", ("task", "name"))
    if (quantization := recipe.model.quantization) is not None:
        bits = str(quantization.bits)
        if (verdict := methods[name]["quantization"][bits]) != "yes":
            others = [each for each, said in methods[name]["quantization"].items() if said == "yes"]
            able = [f"quantization.bits {each}" for each in others]
            able += [f"method {other}" for other, said in methods.items() if said["quantization"][bits] == "yes"]
            problem = f"{name} does not work on {bits} bits: {verdict}"
            yield Refusal(named, problem, ", ".join(able), ("model", "quantization"))
    if recipe.train.gradient_checkpointing and (verdict := methods[name]["checkpointing"]) != "yes":
        able = [f"method {other}" for other, said in methods.items() if said["checkpointing"] == "yes"]
        problem = f"{name} does not work with gradient checkpointing: {verdict}"
        yield Refusal(named, problem, ", ".join(["without it", *able]), ("train", "gradient_checkpointing"))
