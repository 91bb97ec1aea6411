"""A run directory is claimed once, and opened only when it holds a finished run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from peftctl.errors import MachineError, UsageError
from peftctl.run import open_run
from peftctl.train import rundir

RESOLVED = "model: m\ndata: {train: t.jsonl}\nmethod: lora\noutput: out\n"


def finished(folder: Path) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"kind": "run", "artifact": "adapter", "steps": 3}))
    (folder / "resolved.yaml").write_text(RESOLVED)
    return folder


def test_what_is_wrong_with_a_run_is_said_before_torch_is_imported(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom typer.testing import CliRunner\nfrom peftctl.cli import app\n"
        "for words in (['export', 'lost', 'out', '--to', 'gguf'], ['eval', 'lost'], ['generate', 'lost', 'a']):\n"
        "    done = CliRunner().invoke(app, words)\n"
        "    assert (done.exit_code, 'lost: no such run directory' in done.stderr) == (2, True), done.output\n"
        "print(sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_a_finished_run_is_opened_with_its_recipe_and_manifest(tmp_path: Path) -> None:
    run = open_run(finished(tmp_path / "run"))
    assert run.path == tmp_path / "run"
    assert run.artifact == tmp_path / "run" / "adapter"
    assert run.recipe.model.name == "m"
    assert run.manifest["steps"] == 3


def test_a_run_is_known_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert open_run(Path("run")).path == tmp_path / "run"


def refused(path: Path) -> str:
    with pytest.raises(UsageError) as error:
        open_run(path)
    return str(error.value)


def test_what_is_no_finished_run_is_refused_with_what_it_is(tmp_path: Path) -> None:
    run = finished(tmp_path / "run")
    assert refused(tmp_path / "rum") == f"{tmp_path}/rum: no such run directory\nhint: did you mean {run}?"
    assert refused(tmp_path / "a" / "b") == f"{tmp_path}/a/b: no such run directory"
    (tmp_path / "half").mkdir()
    assert refused(tmp_path / "half") == f"{tmp_path}/half holds no manifest.json, so no run was finished there"
    (tmp_path / "half" / "adapter_config.json").touch()
    assert refused(tmp_path / "half") == (
        f"{tmp_path}/half is an adapter folder, not a run directory\nhint: name the folder above it"
    )
    for text, fault in (
        ("{", "is not JSON"),
        ("[]", "is not that of a run"),
        ('{"kind": "other", "run": "a"}', "is not that of a run"),
        ('{"kind": "merged"}', "is that of a merge, not of a run"),
        ('{"kind": "checkpoint", "run": ["a"]}', "is that of a checkpoint, not of a run"),
        ('{"kind": "export", "run": "a"}', "is that of an export, not of a run\nhint: it was made of a"),
    ):
        (run / "manifest.json").write_text(text)
        assert refused(run).startswith(f"{run}/manifest.json {fault}")


@contextmanager
def claimed(path: Path, heard: list[str] | None = None) -> Iterator[Path]:
    """As a run that begins anew has it."""
    with rundir.claim(path) as run:
        if rundir.MANIFEST in (names := rundir.left(run)):
            raise rundir.taken(run, names)
        rundir.move_unfinished(run, (heard if heard is not None else []).append)
        yield run


def test_a_claimed_directory_is_made_and_held(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run"
    with claimed(path) as run:
        assert run == path
        with pytest.raises(MachineError, match=f"output: another process is working in {path}"), claimed(path):
            pass
        (run / "a").write_text("x")
    assert [p.name for p in path.iterdir()] == ["a"]


def test_an_empty_directory_and_one_with_a_dead_lock_are_free(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("999999999")
    heard: list[str] = []
    with claimed(tmp_path, heard):
        pass
    with claimed(tmp_path, heard):
        pass
    assert heard == []


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (["notes.txt"], "something already (notes.txt)"),
        (["metrics.jsonl", "notes.txt"], "something already (metrics.jsonl, notes.txt)"),
        (["manifest.json", "adapter"], "a finished run (adapter, manifest.json)"),
        (["a", "b", "c", "d", "e"], "something already (a, b, c, d, ...)"),
    ],
)
def test_nothing_is_overwritten(tmp_path: Path, there: list[str], said: str) -> None:
    for name in there:
        (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError) as error, claimed(tmp_path):
        pass
    assert error.value.message == f"output: {tmp_path} holds {said}"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(there)


def test_what_unfinished_runs_left_is_moved_aside_each_into_a_folder_of_its_own(tmp_path: Path) -> None:
    heard: list[str] = []
    for number in (1, 2, 3):
        with claimed(tmp_path, heard):
            assert sorted(p.name for p in tmp_path.iterdir()) == [
                ".lock", *(f"unfinished-{n}" for n in range(1, number))
            ]  # fmt: skip
            (tmp_path / "metrics.jsonl").write_text(str(number))
    assert (tmp_path / "unfinished-1" / "metrics.jsonl").read_text() == "1"
    assert (tmp_path / "unfinished-2" / "metrics.jsonl").read_text() == "2"
    assert heard == [
        f"a run that did not finish was in {tmp_path}; what it left is now in unfinished-{n}/" for n in (1, 2)
    ]


def test_a_folder_of_an_unfinished_run_is_never_written_into_again(tmp_path: Path) -> None:
    """A person removed the first of two; the third must not be taken for the second."""
    (tmp_path / "unfinished-2").mkdir()
    (tmp_path / "unfinished-2" / "metrics.jsonl").write_text("old")
    (tmp_path / "metrics.jsonl").write_text("new")
    with claimed(tmp_path):
        pass
    assert (tmp_path / "unfinished-2" / "metrics.jsonl").read_text() == "old"
    assert sorted(path.read_text() for path in tmp_path.glob("unfinished-*/metrics.jsonl")) == ["new", "old"]


def test_a_file_is_no_place_for_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match=f"output: {path} is a file, or lies below one"), claimed(path):
            pass


@pytest.mark.parametrize(
    ("keywords", "said"),
    [
        ({"temperature": -1.0}, "temperature: out of range (found -1.0); allowed: at least 0"),
        ({"top_p": 5.0}, "top_p: out of range (found 5.0); allowed: 0 to 1"),
        ({"seed": -1}, "seed: out of range (found -1); allowed: 0 to 4294967295"),
        ({"max_new_tokens": 0}, "max_new_tokens: out of range (found 0); allowed: at least 1"),
    ],
)
def test_sampling_out_of_range_is_refused(keywords: dict[str, Any], said: str) -> None:
    from peftctl.generate import Sampling

    with pytest.raises(UsageError) as error:
        Sampling(**keywords)
    assert error.value.message == said


@pytest.mark.parametrize("messages", [[], [{"role": "user"}], [{"role": "bot", "content": "x"}], ["hi"]])
def test_messages_that_are_none_are_refused(messages: Any) -> None:
    from peftctl.run import _turns

    with pytest.raises(UsageError, match="PROMPT: "):
        _turns(messages)
