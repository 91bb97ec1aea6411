"""From a recipe to its rows: sources, then the tokenizer, then rows from the cache or made anew and put there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from peftctl.data import cache, sources
from peftctl.data.encode import Encoding, Rows, encode, epoch_of
from peftctl.data.sources import Note, Side, Sourced
from peftctl.errors import UsageError
from peftctl.methods import METHODS
from peftctl.model import load
from peftctl.model.locate import Base, locate
from peftctl.recipe import resolve
from peftctl.recipe.schema import Recipe
from peftctl.tasks import TASKS, task_of
from peftctl.text import template

NAMES = {"train": "training", "eval": "held-out"}
Sides = tuple[Side, Side | None]


@dataclass(frozen=True)
class Data:
    """Rows to learn from, and those to measure on; ``cached``: they were not encoded anew."""

    train: Rows
    eval: Rows | None = None
    cached: bool = False


def check(recipe: Recipe, note: Note) -> Sides | None:
    """The examples of the recipe, which is pinned, where they have not been read before and found good.

    Raises DataError. No tokenizer or model is needed: what is wrong with rows is said before either is fetched.
    """
    return None if cache.seen(cache.reading(recipe)) else sources.read(recipe, note)


@dataclass(frozen=True)
class Opened:
    """A recipe with its sources, template and longest row resolved, and what its rows are made with.

    ``config`` is the model's; ``sides`` the examples, where they had to be read.
    """

    recipe: Recipe
    base: Base
    config: Any
    encoding: Encoding
    sides: Sides | None


def open_rows(recipe: Recipe, note: Note, *, weights: bool = True) -> Opened:
    """Everything that rows are made with. What is wrong with the data is said before the model is fetched.

    Without ``weights`` a hub model's are not. Raises DataError, UsageError and MachineError.
    """
    recipe = sources.resolve(recipe, note)
    sides = None if recipe.data.streaming else check(recipe, note)
    if (written := recipe.data.template) is not None:
        text = template.read(written, recipe.path(written))
        recipe = recipe.with_settings("data", "from the file", template=text)
    base = locate(recipe, note, weights=weights)
    config, tokenizer = load.load_config(base, recipe.model), load.load_tokenizer(base, recipe.model)
    recipe, sides = _decided(recipe, sides, note)
    taken = METHODS[recipe.method.name].positions(recipe.method)
    longest = load.longest_row(config, tokenizer, recipe.data.max_length, taken)
    recipe = resolve.resolve_model(recipe, name=base.name, commit=base.commit, max_length=longest)
    data = recipe.data
    template.choose(tokenizer, data.template, base.name)
    task = task_of(recipe.task)
    if reason := task.unfit(config, tokenizer):
        raise UsageError(f"model.name: {base.name} cannot be trained for {task.name}: {reason}")
    encoding = Encoding(task, tokenizer, longest, data.learn, data.overlong or task.overlong)
    return Opened(recipe, base, config, encoding, sides)


def _decided(recipe: Recipe, sides: Sides | None, note: Note) -> tuple[Recipe, Sides | None]:
    """The recipe with what its training rows decide of the task, where that is left open. ``note`` hears what is odd
    about rows that were read."""
    task = TASKS[recipe.task.name]
    asked = task.asks_rows(recipe.task)
    if asked and recipe.data.streaming:
        wanted = ", ".join(f"task.{name}" for name in asked)
        raise UsageError(f"data.streaming: a stream does not say what {task.name} needs to know: set {wanted}")
    if asked and not sides:
        sides = sources.read(recipe, note)
    examples = [sourced.example for sourced in sides[0].examples] if sides else []
    origin = "from the rows" if asked else "default"
    recipe = recipe.with_settings("task", origin, **task.decide(recipe.task, examples))
    for odd in task_of(recipe.task).check(examples) if sides else ():
        note(odd)
    return recipe, sides


def prepare(recipe: Recipe, encoding: Encoding, sides: Sides | None, note: Note) -> Data:
    """The rows of the recipe, which is pinned; ``sides``: its examples, if they have been read. Raises DataError."""
    reading = cache.reading(recipe)
    if reading is None:
        return _made(recipe, encoding, sides or sources.read(recipe, note))
    entry = cache.entry(reading, encoding)
    with cache.only_one(entry):
        if found := cache.load(entry):
            again = {side: replace(rows, read_again=partial(_side, recipe, side)) for side, rows in found.items()}
            return Data(again["train"], again.get("eval"), cached=True)
        made = _made(recipe, encoding, sides or sources.read(recipe, note))
        sources.resolve(recipe, note)  # a file that changed while it was read is not what its hash says
        cache.save(entry, {"train": made.train} | ({"eval": made.eval} if made.eval else {}), note)
    return made


def _made(recipe: Recipe, encoding: Encoding, sides: Sides) -> Data:
    train, held_out = sides
    rows = encode(train, encoding, NAMES["train"], partial(_side, recipe, "train"))
    weights = [source.weight for source in recipe.data.train]
    rows = replace(rows, epoch=epoch_of(rows, train.examples, weights, recipe.train.seed))
    if held_out is None:
        return Data(rows)
    return Data(rows, encode(held_out, encoding, NAMES["eval"], partial(_side, recipe, "eval")))


def _side(recipe: Recipe, name: str) -> Sequence[Sourced]:
    """The examples of one side, read again: they are not kept in memory for the few who ask for them."""
    train, held_out = sources.read(recipe)
    return train.examples if name == "train" or held_out is None else held_out.examples
