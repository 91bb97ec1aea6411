"""Starting is fast, because what is heavy is imported late."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["torch", "transformers", "peft", "datasets", "accelerate", "bitsandbytes", "huggingface_hub"]


def loaded_by(code: str) -> set[str]:
    probe = f"import sys\ntry:\n    {code}\nexcept SystemExit:\n    pass\nprint('LOADED', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.rpartition("LOADED")[2].split()}


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["eval", "--help"], ["--version"], []])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    code = f"sys.argv = ['peftctl', *{arguments!r}]; from peftctl.cli import main; main()"
    found = loaded_by(code)
    assert "typer" in found
    assert not found & {*HEAVY, "numpy", "rich"} - ({"rich"} if arguments == ["--version"] else set())


def test_check_loads_nothing_heavy() -> None:
    code = "sys.argv = ['peftctl', 'check', 'recipes/quickstart.yaml']; from peftctl.cli import main; main()"
    found = loaded_by(code)
    assert "pydantic" in found
    assert not found & {*HEAVY, "numpy"}


def test_loading_a_recipe_loads_nothing_heavy() -> None:
    code = "import pathlib, peftctl.recipe as r; r.load(pathlib.Path('recipes/quickstart.yaml'))"
    found = loaded_by(code)
    assert "pydantic" in found
    assert not found & {*HEAVY, "numpy"}
