"""`peftctl methods`: what there is, and what each can do, as the table has it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from peftctl.cli import app
from peftctl.errors import RecipeError
from peftctl.methods import METHODS
from peftctl.methods.described import described
from peftctl.methods.presets import VARIANTS
from peftctl.recipe import load
from peftctl.tables import table

SEEN: dict[str, Any] = table("capabilities")["methods"]
COLUMNS = ["families", "tasks", "4 bit", "8 bit", "bfloat16", "checkpointing", "packing", "merges"]


def peftctl(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["methods", *arguments], env={"COLUMNS": "300"})
    return result.exit_code, result.stdout, result.stderr


def cells(name: str) -> list[str]:
    """After the families and tasks, which are phrases."""
    able = SEEN[name]
    said = [able["quantization"]["4"], able["quantization"]["8"], able["bfloat16"], able["checkpointing"]]
    return ["yes" if each == "yes" else "no" for each in [*said, able["packing"], able["merges"]]]


def rows(out: str) -> dict[str, list[str]]:
    """The table's rows by their first word."""
    found = {}
    for line in out.splitlines():
        words = re.split(r"  +", line.strip())
        if words[0] in METHODS and len(words) == 10:
            found[words[0]] = words[1:]
    return found


def test_every_method_has_a_row_that_says_what_the_table_says() -> None:
    code, out, err = peftctl()
    assert (code, err) == (0, "")
    found = rows(out)
    assert found.keys() == METHODS.keys()
    for name, words in found.items():
        assert words[0] == METHODS[name].category
        assert words[3:] == cells(name)
    heading = next(line for line in out.splitlines() if "4 bit" in line)
    assert re.split(r"  +", heading.strip()) == ["kind", *COLUMNS]
    assert found["lora"] == ["reparameterisation", "all", "all", *["yes"] * 6]
    assert found["loha"][1] == "all but gpt2"
    assert found["bitfit"][1] == "gpt2, qwen2"
    assert found["lokr"][3:5] == ["no", "yes"]
    assert found["prefix_tuning"][6:] == ["no", "no", "no"]
    assert "qlora: lora with model.quantization" in out


def test_json_is_the_table_with_its_versions() -> None:
    code, out, err = peftctl("--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said.pop("versions") == {key: table("capabilities")[key] for key in ("peft", "transformers")}
    assert said == SEEN
    said = json.loads(peftctl("ia3", "--json")[1])
    assert said.keys() == {"versions", "ia3"}
    assert said["ia3"] == SEEN["ia3"]


@pytest.mark.parametrize("name", METHODS)
def test_one_method_is_described_with_formula_paper_and_settings(name: str) -> None:
    code, out, err = peftctl(name)
    assert (code, err) == (0, "")
    assert out.startswith(described(METHODS[name]))
    assert "https://" in out or name in ("full", "trainable_tokens")  # which no paper is about
    for setting in METHODS[name].settings.model_fields:
        if setting != "name":
            assert f"  {setting} = " in out
    assert f"(learning_rate {METHODS[name].learning_rate:g})" in out
    table_of_it = out[len(described(METHODS[name])) :]
    assert rows(table_of_it)[name][3:] == cells(name)
    # What does not work is said with its reason.
    able = SEEN[name]
    reasons = {"checkpointing": able["checkpointing"], "merges": able["merges"], "gpt2": able["families"]["gpt2"]}
    reasons["4 bit"] = able["quantization"]["4"]
    for what, said in reasons.items():
        lines = [line for line in table_of_it.splitlines() if line.endswith(f": {said.rstrip('.')}")]
        assert any(what in line for line in lines) is (said != "yes")


def test_defaults_are_shown_as_a_recipe_would_write_them() -> None:
    out = peftctl("lora")[1]
    assert (
        "  rank = 16\n      Rank of the update: the inner size of B A.\n  alpha = (twice the rank)\n      Scale of "
        in out
    )
    assert "  dora = false\n      DoRA (" in out
    assert "  modules_to_save = none\n" in out
    assert "  targets = all-linear\n" in out
    assert "  token_indices = (must be said)\n" in peftctl("trainable_tokens")[1]
    assert "  init = vocabulary\n" in peftctl("prompt_tuning")[1]


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_s_meaning_is_said_whole(name: str) -> None:
    said = " ".join(peftctl(name)[1].split())
    for declared in METHODS[name].settings.model_fields.values():
        for part in (declared.description or "").split(" Default: "):
            assert " ".join(part.removesuffix(".").split()) in said


def test_a_preset_is_shown_as_the_method_that_it_is() -> None:
    code, out, err = peftctl("qlora")
    assert (code, err) == (0, "")
    head = "qlora: lora with model.quantization: {bits: 4, type: nf4, double_quant: true}\n\n"
    assert out == head + peftctl("lora")[1]
    assert json.loads(peftctl("qlora", "--json")[1]).keys() == {"versions", "lora"}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_s_name_is_answered_with_the_setting_that_it_is(name: str, tmp_path: Path) -> None:
    method, setting = VARIANTS[name]
    code, out, err = peftctl(name)
    assert (code, err) == (0, "")
    assert out.startswith(f"{name}: {method} with {setting}\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: org/model\ndata: {{train: t.jsonl}}\nmethod: {{name: {name}, rank: 0}}\noutput: out\n")
    with pytest.raises(RecipeError) as refused:
        load(recipe)
    [named, rank] = refused.value.faults
    assert named.problem == f"{name} is {method} with {setting}"
    assert named.allowed == f"{{name: {method}, {setting}}}"
    assert rank.key == "method.rank"  # the settings beside it are judged as the method's
    recipe.write_text(recipe.read_text().replace(f"{{name: {name}, rank: 0}}", named.allowed))
    load(recipe)


def test_a_misspelt_method_is_answered_with_the_nearest() -> None:
    code, out, err = peftctl("adolara")
    assert (code, out) == (2, "")
    assert "METHOD" in err
    assert "adolara" in err
    assert "did you mean adalora?" in err
    assert all(name in err for name in METHODS)


def test_it_loads_nothing_heavy() -> None:
    from tests.contract.test_start import HEAVY, loaded_by

    for arguments in ([], ["lora"]):
        code = f"sys.argv = ['peftctl', 'methods', *{arguments!r}]; from peftctl.cli import main; main()"
        assert not loaded_by(code) & {*HEAVY, "numpy"}
