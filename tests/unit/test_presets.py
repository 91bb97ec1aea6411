"""A preset's name in a recipe is its method with settings elsewhere, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftctl.errors import RecipeError
from peftctl.methods import METHODS
from peftctl.methods.presets import PRESETS
from peftctl.recipe import Recipe, dump_resolved, load
from peftctl.recipe.json_schema import json_schema
from peftctl.recipe.schema import SECTIONS, QuantizationSettings

RECIPE = "model: {model}\ndata: {{train: t.jsonl}}\nmethod: {method}\noutput: out\n"


def read(folder: Path, method: str, model: str = "m", *overrides: str) -> Recipe:
    (folder / "recipe.yaml").write_text(RECIPE.format(model=model, method=method))
    return load(folder / "recipe.yaml", overrides=overrides)


@pytest.mark.parametrize("method", ["qlora", "{name: qlora, rank: 8}"])
def test_qlora_is_lora_on_a_base_in_four_bits(method: str, tmp_path: Path) -> None:
    recipe = read(tmp_path, method)
    spelled = read(tmp_path, method.replace("qlora", "lora"), "{name: m, quantization: {bits: 4}}")
    assert recipe == spelled
    assert recipe.model.quantization == QuantizationSettings(bits=4, type="nf4", double_quant=True)
    assert recipe.origins["model.quantization.bits"] == "recipe.yaml"
    assert "qlora" not in dump_resolved(recipe, "")


def test_what_the_recipe_says_stays(tmp_path: Path) -> None:
    assert read(tmp_path, "qlora", "{name: m, quantization: {bits: 8}}").model.quantization == QuantizationSettings(
        bits=8
    )
    chosen = read(tmp_path, "qlora", "m", "model.quantization={type: fp4}").model.quantization
    assert chosen == QuantizationSettings(type="fp4")
    assert read(tmp_path, "qlora", "m", "method.name=ia3").model.quantization is None


def test_a_base_that_is_not_to_be_quantised_contradicts_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml:3:\d+: method\.name: qlora is lora with model\.quantization"):
        read(tmp_path, "qlora", "{name: m, quantization: null}")


def test_a_misspelt_one_is_suggested(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean qlora"):
        read(tmp_path, "qlroa")


def test_presets_name_methods_and_settings_that_there_are() -> None:
    assert not PRESETS.keys() & METHODS.keys()
    for preset in PRESETS.values():
        assert preset.method in METHODS
        for key in preset.settings:
            section, setting = key.split(".")
            assert setting in SECTIONS[section].model_fields


def test_an_editor_completes_it_too() -> None:
    schema = json_schema()
    assert "qlora" in schema["properties"]["method"]["anyOf"][0]["enum"]
    assert schema["$defs"]["LoraSettings"]["properties"]["name"]["enum"] == ["lora", "qlora"]
