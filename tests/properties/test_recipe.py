"""Every recipe that can be said is read back as it was said, and every text is a recipe or a fault."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from peftctl.errors import Fault, RecipeError
from peftctl.methods.lora import LoraSettings
from peftctl.recipe import Recipe, dump, dump_resolved, load, nodes, resolve
from peftctl.recipe.rules import UNSCALED
from peftctl.recipe.schema import (
    DataSettings,
    DtypeName,
    EvalSettings,
    EvalSource,
    ModelSettings,
    OptimizerName,
    ScheduleName,
    Source,
    TrainSettings,
)

FOLDER = Path(tempfile.gettempdir())
TRICKY = ["no", "1e-5", "0x1", "null", "~", "1:30", "2026-01-01", "=", "<<", "a: b", "- a", "#a", "'", '"', "{", "\x85"]

letters = st.characters(exclude_categories=["Cs", "Cc"])
# What holds "${" is a reference, which a recipe can be given but not hold.
free = st.text(letters, min_size=1, max_size=20).filter(lambda value: "${" not in value)
text = st.one_of(free, st.sampled_from(TRICKY))
written = text.filter(lambda value: value.strip() != "")


def maybe(strategy: Any) -> Any:
    return st.none() | strategy


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Any:
    return st.floats(low, high, exclude_min=above, exclude_max=below, allow_subnormal=False)


formats = st.sampled_from(["auto", "messages", "prompt_completion"])
many = st.integers(1, 10**9)
held_out = st.one_of(
    st.builds(EvalSource, path=text, format=formats, limit=maybe(many)),
    st.builds(EvalSource, split=number(0, 1, above=True, below=True)),
    st.builds(EvalSource, count=many),
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    eval_rows = draw(maybe(held_out))
    lasting = draw(st.sampled_from(["epochs", "max_steps", "neither"]))
    choices = st.lists(text, min_size=2, max_size=4, unique=True).map(tuple)
    optimizer = draw(st.sampled_from(get_args(OptimizerName)))
    rate = number(0, 1e10, above=True)
    train = TrainSettings(
        epochs=draw(number(0, 1e3, above=True)) if lasting == "epochs" else None,
        max_steps=draw(many) if lasting == "max_steps" else None,
        batch_size=draw(many),
        micro_batch_tokens=draw(maybe(st.integers(8, 10**6))),
        learning_rate=draw(rate if optimizer in UNSCALED else maybe(rate)),
        schedule=draw(st.sampled_from(get_args(ScheduleName))),
        warmup_ratio=draw(number(0, 1, below=True)),
        optimizer=optimizer,
        weight_decay=draw(number(0, 10)),
        gradient_checkpointing=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
        log_every=draw(many),
    )
    every = draw(maybe(many))
    if every is not None and train.max_steps is not None and every >= train.max_steps:
        every = None  # it would have no effect
    return Recipe(
        model=ModelSettings(
            name=draw(text),
            revision=draw(maybe(text)),
            dtype=draw(st.sampled_from(get_args(DtypeName))),
            trust_remote_code=draw(st.booleans()),
        ),
        data=DataSettings(
            train=tuple(
                draw(st.lists(st.builds(Source, path=text, format=formats, limit=maybe(many)), min_size=1, max_size=3))
            ),
            eval=eval_rows,
            max_length=draw(maybe(st.integers(8, 10**6))),
        ),
        method=LoraSettings(
            rank=draw(st.integers(1, 4096)),
            alpha=draw(maybe(number(0, 1e6, above=True))),
            dropout=draw(number(0, 1, below=True)),
            targets=draw(st.lists(text, min_size=1, max_size=3).map(tuple)),
        ),
        output=draw(written),
        train=train,
        eval=EvalSettings(every=every, choices=draw(maybe(choices))) if eval_rows else EvalSettings(),
        folder=FOLDER,
    )


def read(written: str) -> Recipe:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(written, encoding="utf-8")
        return load(path)


@given(recipes(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_a_recipe_written_and_read_is_the_same_recipe(recipe: Recipe, full: bool) -> None:
    assert read(dump_resolved(recipe, "one\ntwo") if full else dump(recipe)) == recipe


@given(recipes())
@settings(max_examples=100, deadline=None)
def test_resolving_twice_is_resolving_once_and_changes_nothing_that_was_said(recipe: Recipe) -> None:
    once = resolve.resolve(recipe)
    assert resolve.resolve(once) == once
    assert once.model == recipe.model
    for name in TrainSettings.model_fields:
        said = getattr(recipe.train, name)
        assert said is None or getattr(once.train, name) == said
    assert (once.train.epochs is None) != (once.train.max_steps is None)


YAMLISH = [
    "model", "data", "train", "method", "output", ": ", ":", "- ", "\n", "\n  ", "{", "}", "[", "]", ", ", "&a ", "*a",
    "<<: ", "!!int ", "? ", "'", '"', "#", "|\n", "1", "1e-5", "no", "lora", "\t", "---\n", "\x01", "é",
]  # fmt: skip
soup = st.lists(st.sampled_from(YAMLISH), max_size=30).map("".join)


def found(call: Callable[[], object]) -> list[Fault]:
    """The faults that a call reports, none where it reports no error; any other exception is a bug."""
    try:
        call()
    except RecipeError as error:
        return error.faults or pytest.fail("a recipe error without faults")
    return []


@given(st.one_of(soup, st.text(st.characters(exclude_categories=["Cs"]), max_size=40)))
@example("a: &a\n  b: *a\n")
@settings(max_examples=400, deadline=None)
def test_any_text_is_a_mapping_or_has_faults_of_form(said: str) -> None:
    for fault in found(lambda: nodes.parse(said, "r.yaml")):
        assert str(fault).startswith("r.yaml")
        assert fault.problem


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, width=16) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
KEYS = ["name", "path", "train", "eval", "split", "count", "format", "limit", "rank", "targets", "choices", "every",
        "epochs", "max_steps", "seed", "schedule", "learning_rate", "max_length"]  # fmt: skip
sections = st.dictionaries(st.sampled_from(["model", "task", "data", "method", "train", "eval", "output", "zzz"]),
                           values | st.dictionaries(st.sampled_from(KEYS), values, max_size=4))  # fmt: skip


@given(sections)
@settings(max_examples=300, deadline=None)
def test_any_mapping_is_a_recipe_or_has_faults_with_places(said: dict[str, Any]) -> None:
    for fault in found(lambda: read(yaml.safe_dump(said, allow_unicode=False))):
        assert fault.problem
        assert fault.place.line >= 1
        assert fault.place.column >= 1
