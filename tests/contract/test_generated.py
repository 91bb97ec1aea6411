"""What is generated is what its source would generate today."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from peftctl.recipe.schema import SECTIONS
from peftctl.settings import sections_in
from peftctl.tasks import TASKS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("script", ["docs.py", pytest.param("tables.py", marks=pytest.mark.slow)])
def test_generated_files_are_current(script: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / script), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tables_are_those_of_the_pinned_versions() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and line[0] != "#"
    )
    for name in ("model_types", "peft_configs", "capabilities"):
        table = json.loads((ROOT / "peftctl" / "tables" / f"{name}.json").read_text())
        for package in table.keys() & {"peft", "transformers"}:
            assert table[package] == pins[package]


def tables_script() -> Any:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.slow
def test_encoders_are_found_by_trying_them() -> None:
    found = set(tables_script().encoders(TASKS["causal_lm"]))
    assert {"bert", "roberta", "xlm-roberta", "electra"} <= found
    assert not {"gpt_neox", "bart", "trocr", "llama"} & found  # gpt_neox's config has an is_decoder of no effect


@pytest.mark.slow
def test_model_types_are_those_that_training_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle is what transformers has classes for: a model that sees is loaded, one with an encoder is not."""
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    from peftctl.errors import RecipeError
    from peftctl.recipe import check

    script = tables_script()
    monkeypatch.setattr(script, "encoders", lambda _: ["roberta"])  # which take some time to be found
    made = script.model_types()
    known = set(made["tasks"]["causal_lm"])
    text, sees = (
        {config.model_type for config in auto._model_mapping} - {""}
        for auto in (AutoModelForCausalLM, AutoModelForMultimodalLM)
    )
    assert text <= known <= text | sees
    assert {"llava", "qwen2_vl", "qwen2_audio", "llama"} <= known
    assert not {"t5", "florence2", "vision-encoder-decoder"} & known

    monkeypatch.setattr(importlib.import_module("peftctl.recipe.check"), "table", lambda _: made)
    (tmp_path / "model").mkdir()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: ./model\ndata: {train: t.jsonl}\nmethod: lora\noutput: out\n")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llava"}')
    check(recipe)
    (tmp_path / "model" / "config.json").write_text('{"model_type": "florence2"}')
    with pytest.raises(RecipeError, match="has no causal_lm model of this type"):
        check(recipe)
    (tmp_path / "model" / "config.json").write_text('{"model_type": "roberta"}')
    with pytest.raises(RecipeError, match="lets tokens see those after them"):
        check(recipe)


def test_every_setting_of_a_section_within_a_section_is_in_the_docs() -> None:
    page = (ROOT / "docs" / "recipe.md").read_text()
    inner = [(f"{name}.{key}", kind) for name, settings in SECTIONS.items() for key, kind in sections_in(settings)]
    assert {"model.quantization", "train.fast", "data.eval"} <= {name for name, _ in inner}
    for name, kind in inner:
        table = page.split(f"\n### `{name}`")[1].split("\n#")[0]
        assert all(f"\n| `{setting}`" in table for setting in kind.model_fields), name
