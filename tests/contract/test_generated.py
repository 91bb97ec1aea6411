"""What is generated is what its source would generate today."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
