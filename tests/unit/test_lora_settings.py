"""LoRA's settings as a recipe writes them, and what does not go together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from peftctl.errors import PeftctlError, RecipeError
from peftctl.methods.lora_settings import LoraSettings
from peftctl.recipe import dump, load
from peftctl.recipe.able import judge
from tests.unit.lora_cases import LORA, settled


def written(folder: Path, method: dict[str, Any], **sections: Any) -> Path:
    path = folder / "r.yaml"
    recipe = {"model": "m", "data": {"train": "d.jsonl"}, "method": {"name": "lora", **method}, "output": "o"}
    path.write_text(yaml.safe_dump({**recipe, **sections}, sort_keys=False))
    return path


def fault(folder: Path, **method: Any) -> str:
    with pytest.raises(RecipeError) as refused:
        load(written(folder, method))
    (found,) = refused.value.faults
    return str(found).split(": ", 1)[1]


@pytest.mark.parametrize(
    ("layers", "wanted"),
    [
        (3, (3,)),
        ("3", (3,)),
        ("2-4", (2, 3, 4)),
        ([0, "2 - 4", 9], (0, 2, 3, 4, 9)),
        ([1, "0-1", 1], (1, 0)),
        (["7-7"], (7,)),
    ],
)
def test_layers_are_numbers_and_ranges(layers: Any, wanted: tuple[int, ...], tmp_path: Path) -> None:
    recipe = load(written(tmp_path, {"layers": layers}))
    assert isinstance(recipe.method, LoraSettings)
    assert recipe.method.layers == wanted
    again = tmp_path / "again.yaml"
    again.write_text(dump(recipe))
    assert load(again).method == recipe.method


@pytest.mark.parametrize("layers", ["last", "4-2", "1-", ["0-99999"], "0-3-5", "-1"])
def test_other_words_for_layers_are_refused(layers: Any, tmp_path: Path) -> None:
    found = fault(tmp_path, layers=layers)
    assert found.startswith("method.layers: must be numbers of layers (found ")
    assert found.endswith("; allowed: numbers from 0, and ranges such as 0-3")


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ({"layers": [-1]}, "method.layers[0]: out of range (found -1); allowed: at least 0"),
        ({"layers": []}, "method.layers: too short (found a list of 0); allowed: at least 1 in the list"),
        ({"rank_pattern": {"q": 0}}, "method.rank_pattern.q: out of range (found 0); allowed: at least 1"),
        ({"rank_pattern": {"q": 1.5}}, "method.rank_pattern.q: must be a whole number (found 1.5)"),
        ({"alpha_pattern": {"q": 0}}, "method.alpha_pattern.q: out of range (found 0); allowed: more than 0"),
        ({"rank_pattern": "q_proj"}, "method.rank_pattern: must be a mapping (found 'q_proj')"),
        ({"loraplus": 0.5}, "method.loraplus: out of range (found 0.5); allowed: at least 1"),
        (
            {"init": "pissa_niter_16"},
            "method.init: no such value (found 'pissa_niter_16'); allowed: default, gaussian, orthogonal, pissa, "
            "pissa_niter_4, olora; did you mean pissa_niter_4?",
        ),
        (
            {"trainable_tokens": [1.5]},
            "method.trainable_tokens: must be tokens (found a list of 1); allowed: ids, and tokens as text in quotes",
        ),
        (
            {"trainable_tokens": True},
            "method.trainable_tokens: must be tokens (found true); allowed: ids, and tokens as text in quotes",
        ),
        (
            {"trainable_tokens": ["", -5]},
            "method.trainable_tokens: must be tokens (found a list of 2); allowed: ids, and tokens as text in quotes",
        ),
        ({"targets": []}, "method.targets: too short (found a list of 0); allowed: at least 1 in the list"),
        ({"targets": 3}, "method.targets: must be text or a list of it (found 3)"),
        ({"modules_to_save": 3}, "method.modules_to_save: must be text or a list of it (found 3)"),
    ],
)
def test_values_that_will_not_do_are_refused_by_name(method: dict[str, Any], wanted: str, tmp_path: Path) -> None:
    assert fault(tmp_path, **method) == wanted


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        (
            {"dora": True, "lora_bias": True},
            "method.lora_bias: does not go with dora: DoRA scales the rows of a weight, and a bias is none (found "
            "true); allowed: one of the two",
        ),
        (
            {"dora": True, "init": "olora"},
            "method.init: does not go with dora: a fixed part is taken off the update, which DoRA's lengths leave out "
            "(found 'olora'); allowed: one of the two, or dora with init default, gaussian or orthogonal",
        ),
        (
            {"rank": 5, "init": "orthogonal"},
            "method.init: needs even ranks, half for A and half for B (found 'orthogonal'); allowed: an even rank, "
            "here and in rank_pattern",
        ),
        (
            {"rank_pattern": {"q_proj": 3}, "init": "orthogonal"},
            "method.init: needs even ranks, half for A and half for B (found 'orthogonal'); allowed: an even rank, "
            "here and in rank_pattern",
        ),
        (
            {"target_parameters": "w", "dropout": 0.1},
            "method.target_parameters: does not go with dropout: their update is added to weights, not to inputs that "
            "could be dropped (found 'w'); allowed: dropout 0",
        ),
        (
            {"target_parameters": "w", "dora": True},
            "method.target_parameters: does not go with dora: PEFT has no DoRA for experts' weights (found 'w'); "
            "allowed: rslora, or dora without target_parameters",
        ),
        (
            {"target_parameters": "w", "lora_bias": True},
            "method.target_parameters: does not go with lora_bias: experts' weights have no outputs of their own to "
            "add to (found 'w'); allowed: one of the two",
        ),
        (
            {"target_parameters": "w", "init": "pissa"},
            "method.target_parameters: does not go with init pissa, which is for linear layers (found 'w'); allowed: "
            "init default or gaussian",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_what_does(
    method: dict[str, Any], wanted: str, tmp_path: Path
) -> None:
    assert fault(tmp_path, **method) == wanted


@pytest.mark.parametrize(
    "method",
    [
        {"dora": True, "init": "gaussian", "rslora": True, "dropout": 0.1},
        {"lora_bias": True, "init": "pissa"},
        {"rank": 6, "init": "orthogonal", "rank_pattern": {"q_proj": 2}},
        {"targets": [], "target_parameters": "w", "init": "gaussian", "rslora": True},
    ],
)
def test_what_goes_together_is_taken(method: dict[str, Any], tmp_path: Path) -> None:
    assert load(written(tmp_path, method)).method == LORA.settings.model_validate({"name": "lora", **method})


def test_resolving_makes_alpha_explicit_and_nothing_else() -> None:
    assert settled(rank=8) == settled(rank=8, alpha=16.0)
    assert settled(rank=8, layers="0-1", rank_pattern={"a": 2}).model_dump(exclude_defaults=True) == {
        "rank": 8, "alpha": 16.0, "layers": (0, 1), "rank_pattern": {"a": 2},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "bits", "refused"),
    [
        ({"init": "pissa"}, 4, "method.init: does not go with 4 bits: pissa starts from weights that are not rounded; "
         "allowed: init default, gaussian or orthogonal"),
        ({"init": "olora"}, 8, "method.init: does not go with 8 bits: olora starts from weights that are not rounded; "
         "allowed: init default, gaussian or orthogonal"),
        ({"dora": True}, 8, "method.dora: does not go with 8 bits: bitsandbytes' 8-bit layers drop the scales that it "
         "measures weights by; allowed: 4 bits, or dora false"),
        ({"dora": True}, 4, ""),
        ({"lora_bias": True}, 4, ""),
        ({"init": "orthogonal"}, 8, ""),
    ],
)  # fmt: skip
def test_what_does_not_go_with_a_quantised_base_is_known_from_the_recipe(
    method: dict[str, Any], bits: int, refused: str, tmp_path: Path
) -> None:
    model = {"name": "m", "dtype": "float32", "quantization": {"bits": bits}}
    recipe = load(written(tmp_path, method, model=model))
    if not refused:
        judge(recipe)
        return
    with pytest.raises(PeftctlError) as error:
        judge(recipe)
    assert error.value.message == refused
    judge(load(written(tmp_path, method)))
