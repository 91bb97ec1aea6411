"""A recipe written and read again is the same recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from peftctl.methods.lora import LoraSettings
from peftctl.recipe import Recipe, dump, load
from peftctl.recipe.schema import SECTIONS, DataSettings, EvalSettings, EvalSource, ModelSettings, Source, TrainSettings


def recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "model": ModelSettings(name="m"),
        "data": DataSettings(train=(Source(path="t.jsonl"),)),
        "method": LoraSettings(),
        "output": "out",
    }
    return Recipe(**(settings | changes))


def again(written: str, folder: Path) -> Recipe:
    path = folder / "again.yaml"
    path.write_text(written, encoding="utf-8")
    return load(path)


def test_only_what_differs_from_the_defaults_is_written() -> None:
    assert yaml.safe_load(dump(recipe(train=TrainSettings(seed=3)))) == {
        "model": {"name": "m"},
        "task": {"name": "causal_lm"},
        "data": {"train": [{"path": "t.jsonl"}]},
        "method": {"name": "lora"},
        "train": {"seed": 3},
        "output": "out",
    }


def test_a_full_dump_has_every_setting_that_has_a_value(tmp_path: Path) -> None:
    made = recipe()
    written = yaml.safe_load(dump(made, full=True))
    assert written["train"] == {key: value for key, value in made.train.model_dump().items() if value is not None}
    assert list(written) == [name for name in (*SECTIONS, "output") if name in written]
    assert again(dump(made, full=True), tmp_path) == made


def test_a_comment_stands_before_each_line(tmp_path: Path) -> None:
    written = dump(recipe(), "one\ntwo")
    assert written.startswith("# one\n# two\nmodel:\n")
    assert again(written, tmp_path) == recipe()


@pytest.mark.parametrize(
    "text",
    [
        "no", "Yes", "null", "~", "3", "0x10", "1e-5", "1E5", "-1e5", "+2e3", "1_0e5", "1.5", ".inf", "2026-01-01",
        "1:30", "=", "<<", "*a", "&a", "!x", "- a", "a: b", "a #b", "#a", "'", '"', "a\nb", " a ", "\ta", "é", "😀",
        "\u2028", "\x85", "{a}", "[a]", "|", ">", "%a", "@a", "`a", "a" * 300, "a b " * 60, "---", "...", "\ufeff",
    ],
)  # fmt: skip
def test_text_comes_back_as_text_whatever_it_looks_like(tmp_path: Path, text: str) -> None:
    made = recipe(
        model=ModelSettings(name=text),
        data=DataSettings(train=(Source(path=text),), eval=EvalSource(path=text)),
        method=LoraSettings(targets=(text, text)),
        eval=EvalSettings(choices=(text, "other")),
        output=f"x{text}",
    )
    assert again(dump(made), tmp_path) == made
    assert again(dump(made, full=True), tmp_path) == made


@pytest.mark.parametrize("rate", [1e-5, 2e-4, 1e-300, 1e300, 0.1 + 0.2, 5e-324, 3.0])
def test_a_number_comes_back_to_the_last_bit(tmp_path: Path, rate: float) -> None:
    made = recipe(train=TrainSettings(learning_rate=rate))
    assert again(dump(made), tmp_path).train.learning_rate == rate


def test_no_anchors_are_written() -> None:
    name = "a/path/that/is/used/twice"
    source = Source(path=name)
    assert "&" not in dump(recipe(data=DataSettings(train=(source, source), eval=EvalSource(path=name))))


def test_a_recipe_resolved_for_a_model_with_very_many_modules_is_read_again(tmp_path: Path) -> None:
    """A mixture of 64 experts in 60 layers: 3840 names."""
    names = tuple(f"model.layers.{layer}.mlp.experts.{e}.up_proj" for layer in range(60) for e in range(64))
    made = recipe(method=LoraSettings(targets=names))
    assert again(dump(made, full=True), tmp_path) == made
