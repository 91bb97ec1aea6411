"""A recipe's open choices: made once, explicit, and nothing else changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from peftctl.methods import METHODS
from peftctl.methods.lora import LoraSettings
from peftctl.recipe import Recipe, resolve
from peftctl.recipe.schema import DataSettings, EvalSource, ModelSettings, Source, TrainSettings


def recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "model": ModelSettings(name="m"),
        "data": DataSettings(train=(Source(path="t.jsonl"), Source(path="/abs.jsonl", limit=3))),
        "method": LoraSettings(),
        "output": "out",
        "folder": Path("/recipes"),
    }
    return Recipe(**(settings | changes))


def test_defaults_that_follow_from_the_recipe_are_made_explicit() -> None:
    made = resolve.resolve(recipe())
    assert made.train.epochs == 3.0
    assert made.train.max_steps is None
    assert made.train.learning_rate == METHODS["lora"].learning_rate
    assert isinstance(made.method, LoraSettings)
    assert made.method.alpha == 32.0


def test_what_is_written_stays() -> None:
    made = resolve.resolve(
        recipe(train=TrainSettings(epochs=0.5, learning_rate=1.0), method=LoraSettings(rank=8, alpha=1.0))
    )
    assert (made.train.epochs, made.train.learning_rate) == (0.5, 1.0)
    assert isinstance(made.method, LoraSettings)
    assert (made.method.rank, made.method.alpha) == (8, 1.0)


def test_steps_take_the_place_of_epochs() -> None:
    made = resolve.resolve(recipe(train=TrainSettings(max_steps=7)))
    assert (made.train.epochs, made.train.max_steps) == (None, 7)


def test_paths_of_rows_become_absolute() -> None:
    made = resolve.resolve(
        recipe(data=DataSettings(train=(Source(path="a/t.jsonl"),), eval=EvalSource(path="e.jsonl")))
    )
    assert [source.path for source in made.data.train] == ["/recipes/a/t.jsonl"]
    assert made.data.eval is not None
    assert made.data.eval.path == "/recipes/e.jsonl"
    assert resolve.resolve(recipe()).data.train[1] == Source(path="/abs.jsonl", limit=3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"train": TrainSettings(max_steps=3)},
        {"data": DataSettings(train=(Source(path="t"),), eval=EvalSource(split=0.5))},
        {"method": LoraSettings(rank=3, targets=("q_proj",))},
    ],
)
def test_resolving_twice_changes_nothing(changes: dict[str, Any]) -> None:
    once = resolve.resolve(recipe(**changes))
    assert resolve.resolve(once) == once


def test_what_the_model_decides_is_recorded() -> None:
    made = resolve.resolve_model(recipe(), name="/models/m", commit="c0ffee", max_length=64)
    made = resolve.resolve_memory(resolve.resolve_machine(made, dtype="float32"), micro_batch_tokens=512)
    made = resolve.resolve_targets(made, ["a.q_proj", "b.q_proj"])
    assert (made.model.name, made.model.revision, made.model.dtype) == ("/models/m", "c0ffee", "float32")
    assert (made.data.max_length, made.train.micro_batch_tokens) == (64, 512)
    assert made.method.targets == ("a.q_proj", "b.q_proj")
    assert made.data.train == recipe().data.train
