"""``peftctl data`` and ``peftctl cache`` as a person and as a program use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from peftctl.cli import app
from tests import tiny
from tests.jobs import recipe_text


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(recipe_text(tmp_path, tiny_model, data={"eval": {"count": 4}}))
    return path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_a_pipe_gets_signs_around_what_is_learned_and_tables(recipe: Path) -> None:
    said = run("data", str(recipe), "--rows", "1")
    assert said.exit_code == 0, said.output
    assert "train.jsonl: messages" in said.output
    assert "⟦even<|im_end|>⟧" in said.output or "⟦odd<|im_end|>⟧" in said.output
    table = [line.split() for line in said.output.splitlines()]
    assert ["read", "24", "4"] in table
    assert ["held", "out", "4", "0"] in table
    assert ["kept", "20", "4"] in table
    assert "held-out rows that are training rows too: 0" in said.output


def test_the_held_out_rows_can_be_shown(recipe: Path) -> None:
    said = run("data", str(recipe), "--from", "eval", "--row", "4", "--rows", "5")
    assert said.exit_code == 0
    assert said.output.count("of them learned") == 1  # there is one from the fourth on


def test_a_program_gets_json(recipe: Path) -> None:
    said = run("data", str(recipe), "--json", "--rows", "2")
    found = json.loads(said.output)
    lines = [int(row["place"].rpartition(":")[2]) for row in found["rows"]]
    assert len(lines) == 2
    assert lines[0] < lines[1]
    assert {"text", "id", "weight"} == set(found["rows"][0]["tokens"][0])
    assert found["sides"]["train"]["kept"] == 20
    assert found["sides"]["eval"]["length_histogram"]


def test_control_characters_of_a_row_do_not_reach_the_terminal(recipe: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a\x1b[31mb\rc"}, {"role": "assistant", "content": "ok\x07 then"}]
    tiny.jsonl(tmp_path / "train.jsonl", [{"messages": turns}] * 9)
    said = run("data", str(recipe), "--plain")
    assert "\x1b" not in said.output
    assert "\x07" not in said.output
    assert "a\\x1b[31mb\\x0dc" in said.output


def test_faulty_rows_end_it_as_they_end_training(recipe: Path, tmp_path: Path) -> None:
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"messages": []}\n')
    said = run("data", str(recipe))
    assert said.exit_code == 3
    assert "train.jsonl:25: messages is empty" in said.output
    said = run("data", str(recipe), "--set", "data.on_bad_row=drop", "--set", "data.max_bad_fraction=0.1")
    assert said.exit_code == 0
    assert "dropped: says nothing" in said.output


def test_a_wrong_side_is_refused(recipe: Path) -> None:
    said = run("data", str(recipe), "--from", "evil")
    assert said.exit_code == 2
    assert "--from: no such value (found 'evil'); allowed: train, eval; did you mean eval?" in said.output


def test_the_cache_is_shown_and_cleared(recipe: Path, tmp_path: Path) -> None:
    assert run("data", str(recipe)).exit_code == 0
    shown = json.loads(run("cache", "--json").output)
    assert shown["data"]["entries"] == 1
    assert shown["data"]["bytes"] > 1000
    assert "data" in run("cache").output
    cleared = json.loads(run("cache", "--clear", "--json").output)
    assert cleared["freed_bytes"] >= shown["data"]["bytes"]
    assert "data" not in cleared or cleared["data"]["entries"] == 0
    assert run("data", str(recipe)).exit_code == 0
