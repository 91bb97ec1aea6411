"""A run trained again gives the same bits, or is told which differ; a step's rows are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from peftctl import atomic
from peftctl.cli import app
from peftctl.errors import UsageError
from peftctl.events import Events
from peftctl.reproduce import reproduce
from peftctl.run import open_run
from tests import jobs, tiny

CASE: dict[str, Any] = {
    "method": {"name": "lora", "rank": 2, "dropout": 0.1},
    "train": {"epochs": None, "max_steps": 5, "batch_size": 4, "learning_rate": 5e-3, "max_time": "1h"},
    "data": {"eval": {"count": 4}},
}


def edited(run: Path, name: str, change: Any) -> None:
    """Change a file of a run, and what the manifest says of it."""
    file = run / name
    change(file)
    manifest = jobs.manifest(run)
    if name in manifest["files"]:
        manifest["files"][name] = {"size_bytes": file.stat().st_size, "sha256": atomic.sha256(file)}
        atomic.write_json(run / "manifest.json", manifest)


def test_a_run_trained_again_has_the_same_bits(tmp_path: Path, tiny_model: Path) -> None:
    run, _ = jobs.train(tmp_path, tiny_model, "run", **CASE)
    found = reproduce(open_run(run), None, Events())
    assert found.same
    assert (found.tensors, found.steps, found.versions) == (28, 5, ())
    assert jobs.bits(tmp_path / "run-again") == jobs.bits(run)


def test_what_differs_is_named(tmp_path: Path, tiny_model: Path) -> None:
    run, _ = jobs.train(tmp_path, tiny_model, "run", **CASE)

    def tensors(file: Path) -> None:
        found = load_file(file)
        first = sorted(found)[0]
        found[first][0, 0] += 0.25
        save_file(found, file, {"format": "pt"})

    def log(file: Path) -> None:
        events = [json.loads(line) for line in file.read_text().splitlines()]
        for event in events:
            if event["event"] == "step" and event["step"] >= 3:
                event["loss"] += 0.125
        file.write_text("".join(json.dumps(event) + "\n" for event in events))

    def versions(file: Path) -> None:
        found = json.loads(file.read_text())
        found["packages"]["torch"] = "2.0.0"
        file.write_text(json.dumps(found))

    edited(run, "adapter/adapter_model.safetensors", tensors)
    edited(run, "metrics.jsonl", log)
    edited(run, "environment.json", versions)
    done = CliRunner().invoke(app, ["train", "--reproduce", str(run), "--output", str(tmp_path / "again"), "--json"])
    assert done.exit_code == 5, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["same"], found["step"], len(found["differing"])) == (False, 3, 1)
    assert 0.2 < next(iter(found["differing"].values())) < 0.3
    assert found["versions"][0].startswith("torch 2.0.0 then")

    shutil.rmtree(tmp_path / "again")
    done = CliRunner().invoke(app, ["train", "--reproduce", str(run), "--output", str(tmp_path / "again")])
    assert "not the same: 1 of 28 tensors differ" in done.stdout
    assert "losses differ from step 3 on, of 5" in done.stdout
    assert "changed: torch 2.0.0 then" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "a recipe to train is needed, or --reproduce RUN"),
        (["recipe.yaml", "--reproduce", "RUN"], "not both"),
        (["--reproduce", "RUN", "--set", "train.epochs=1"], "--set: has no effect with --reproduce"),
        (["--reproduce", "RUN", "--resume", "never"], "--resume: has no effect with --reproduce"),
        (["--reproduce", "RUN", "--output", "RUN"], "is the run itself"),
        (["--reproduce", "nowhere"], "no such run directory"),
    ],
)
def test_what_reproduce_does_not_take(
    tmp_path: Path, tiny_model: Path, arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = "run"
    if "is the run itself" in said:
        run = str(jobs.train(tmp_path, tiny_model, "run", **CASE)[0])
    done = CliRunner().invoke(app, ["train", *(each.replace("RUN", run) for each in arguments)])
    assert (done.exit_code, said in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("name", ["environment.json", "metrics.jsonl"])
@pytest.mark.parametrize("text", [None, "{"])
def test_what_cannot_be_compared_is_said_before_training(
    tmp_path: Path, tiny_model: Path, name: str, text: str | None
) -> None:
    run, _ = jobs.train(tmp_path, tiny_model, "run", **CASE)
    (run / name).unlink() if text is None else (run / name).write_text(text)
    with pytest.raises(UsageError, match=f"{name} cannot be read"):
        reproduce(open_run(run), None, Events())
    assert not (tmp_path / "run-again").exists()


def test_another_base_is_refused_before_training(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    run, _ = jobs.train(tmp_path, base, "run", **CASE)
    tiny.save(base, tiny.llama(seed=3))
    with pytest.raises(UsageError, match="is not the base model this run was trained on"):
        reproduce(open_run(run), None, Events())


@pytest.mark.parametrize("fast", [True, False])
def test_a_step_names_its_rows_and_their_losses(tmp_path: Path, tiny_model: Path, fast: bool) -> None:
    paths = {name: fast for name in ("packed", "loss", "lora", "norm")}
    train = {**CASE["train"], "log_rows": True, "fast": paths, "micro_batch_tokens": 64}
    run, events = jobs.train(tmp_path, tiny_model, "run", **{**CASE, "train": train})
    done = CliRunner().invoke(app, ["inspect", str(run), "--step", "3", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["step"], facts["steps"], len(facts["rows"])) == (3, 5, 4)
    assert {row["file"] for row in facts["rows"]} == {str(tmp_path / "train.jsonl")}

    assert facts["loss"] == jobs.losses(events)[2]
    from peftctl.data.prepare import open_rows
    from peftctl.data.supply import supplied

    opened = open_rows(open_run(run).recipe, print)
    rows = supplied(opened, print)[0].rows(2)
    weights = [row.supervised for row in rows]
    mean = sum(w * row["loss"] for w, row in zip(weights, facts["rows"], strict=True)) / sum(weights)
    assert mean == pytest.approx(facts["loss"], abs=1e-5)
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    for row, encoded in zip(facts["rows"], rows, strict=True):
        text = opened.encoding.tokenizer.decode(encoded.ids)
        for message in json.loads(lines[row["line"] - 1])["messages"]:
            assert message["content"] in text


def test_a_row_that_cannot_be_learned_has_the_largest_loss(tmp_path: Path, tiny_model: Path) -> None:
    chats = [json.loads(json.dumps(tiny.chats(1)[0])) for _ in range(16)]
    chats[6]["messages"][-1]["content"] = "qzxjkwvy" * 4
    tiny.jsonl(tmp_path / "train.jsonl", chats)
    train = {"epochs": 12, "batch_size": 16, "learning_rate": 2e-2, "log_rows": True}
    run, _ = jobs.train(tmp_path, tiny_model, "run", train=train)
    done = CliRunner().invoke(app, ["inspect", str(run), "--step", "12"])
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1].split()[0].endswith("train.jsonl:7")


def test_rows_are_not_named_where_the_data_has_changed_or_there_is_no_such_step(
    tmp_path: Path, tiny_model: Path
) -> None:
    run, _ = jobs.train(tmp_path, tiny_model, "run", **CASE)
    for step, said in (("0", "no such step"), ("6", "allowed: 1 to 5")):
        done = CliRunner().invoke(app, ["inspect", str(run), "--step", step])
        assert (done.exit_code, said in done.stderr) == (2, True)
    done = CliRunner().invoke(app, ["inspect", str(run), "--step", "5"])
    assert "their losses were not logged: train.log_rows has that done" in done.stdout
    tiny.jsonl(tmp_path / "train.jsonl", tiny.chats(25))
    done = CliRunner().invoke(app, ["inspect", str(run), "--step", "3"])
    assert (done.exit_code, "is not the file that the recipe pins" in done.stderr) == (3, True), done.stderr
    done = CliRunner().invoke(app, ["inspect", str(run / "adapter"), "--step", "3"])
    assert (done.exit_code, "--step: has no effect on an adapter" in done.stderr) == (2, True)


def test_a_checkpoint_is_inspected(tmp_path: Path, tiny_model: Path) -> None:
    case = {**CASE, "eval": {"every": 2, "best": True}}
    run, _ = jobs.train(tmp_path, tiny_model, "run", **case)
    path = run / "checkpoints" / "step-000005"
    done = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["kind"], facts["layout"], facts["step"], facts["steps"]) == ("checkpoint", "peftctl", 5, 5)
    assert (facts["complete"], facts["intact"], facts["holds"]) == (True, True, "what is trained")
    assert facts["metrics"]["loss"] > 0
    assert facts["best"]["step"] in (2, 4, 5)

    found = bytearray((path / "optimizer.safetensors").read_bytes())
    found[-1] ^= 1
    (path / "optimizer.safetensors").write_bytes(found)
    done = CliRunner().invoke(app, ["inspect", str(path)])
    assert done.exit_code == 5
    assert "optimizer.safetensors: has other contents" in done.stdout
    (path / "manifest.json").unlink()
    done = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    facts = json.loads(done.stdout)
    assert (done.exit_code, facts["complete"], facts["missing"]) == (5, False, ["manifest.json"])


def test_a_run_whose_newest_checkpoint_is_damaged_says_so_and_from_where_it_goes_on(
    tmp_path: Path, tiny_model: Path
) -> None:
    run, _ = jobs.train(tmp_path, tiny_model, "run", **{**CASE, "train": {**CASE["train"], "save_every": 1}})
    (run / "manifest.json").unlink()
    shutil.rmtree(run / "adapter")
    done = CliRunner().invoke(app, ["inspect", str(run)])
    assert (done.exit_code, "goes on: after step 5" in done.stdout) == (0, True), done.output
    (run / "checkpoints" / "step-000005" / "trained.safetensors").unlink()
    done = CliRunner().invoke(app, ["inspect", str(run)])
    assert (done.exit_code, "goes on: after step 4" in done.stdout) == (5, True), done.output
    assert "error: checkpoint step-000005 " in done.stdout
