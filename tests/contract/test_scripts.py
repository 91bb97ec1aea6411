"""What scripts take from the package is there: no type checker reads them, and some are run once in a while only."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
PATHS = sorted(SCRIPTS.rglob("*.py"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.relative_to(SCRIPTS).as_posix())
def test_what_a_script_imports_of_the_package_is_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "peftctl":
            module = importlib.import_module(node.module)
            for alias in node.names:
                there = hasattr(module, alias.name) or importlib.util.find_spec(f"{node.module}.{alias.name}")
                assert there, f"{path.name} imports {alias.name} of {node.module}"
