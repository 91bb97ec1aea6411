"""Every recipe of recipes/methods for a few steps, on the model and the mails it names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import peftctl
from peftctl.events import Events
from peftctl.methods import METHODS
from peftctl.methods.presets import PRESETS
from peftctl.recipe import load
from peftctl.train import job

ROOT = Path(__file__).parents[2]
# The adapters that xlora's mixes are what others of them leave: tests/integration/test_xlora.py makes them first.
RECIPES = sorted(path for path in (ROOT / "recipes" / "methods").glob("*.yaml") if path.stem != "xlora")
SHOWN = ("prefix_tuning", "qlora")  # what scripts/test takes, beside the quickstart's own
SHORT = [
    "train.epochs=null", "train.max_steps=3", "train.batch_size=2", "data.max_length=48",
    "data.overlong=truncate_start", "data.train[0].limit=40", "data.eval.limit=4",
    "train.learning_rate=1e-4", "eval.choices=null",
]  # fmt: skip


def test_there_is_a_recipe_for_every_method_with_a_file_of_its_own() -> None:
    own = {name for name, method in METHODS.items() if type(method).__module__.rsplit(".", 1)[-1] == name}
    named = {path.stem for path in RECIPES}
    assert own - {"bitfit", "xlora"} | PRESETS.keys() <= named  # the model has no biases; and see the recipe of xlora
    assert named <= METHODS.keys() | PRESETS.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [pytest.param(path, id=path.stem, marks=() if path.stem in SHOWN else pytest.mark.whole) for path in RECIPES],
)
def test_a_method_s_recipe_trains_the_real_model(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_cache: Path
) -> None:
    monkeypatch.setenv("PEFTCTL_CACHE", str(shared_cache))
    heard: list[dict[str, Any]] = []
    run = job.train(load(recipe, str(tmp_path / "run"), SHORT), "", Events(lambda event: heard.append(dict(event))))
    facts = json.loads((run / "manifest.json").read_text())
    assert facts["steps"] == 3
    assert facts["skipped_updates"] == 0
    assert facts["verified"]["reload"]["verified"] == "yes"
    assert next(event for event in heard if event["event"] == "model")["trainable"] == facts["trainable_parameters"]
    loaded = peftctl.load(run)
    assert loaded.held_out()(loaded.model)["loss"] == pytest.approx(facts["metrics"]["loss"], rel=1e-4)


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's plain folder is made once for all recipes."""
    return tmp_path_factory.mktemp("cache")
