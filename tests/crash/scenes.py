"""What is killed: a whole run with its checkpoints, its publishing and its measuring; and merging what it left."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.atomic import inventory
from peftctl.train import checkpoint
from tests import jobs, tiny
from tests.crash import harness
from tests.unit import gguf_models

TRAIN: dict[str, Any] = {
    "epochs": None, "max_steps": 4, "batch_size": 3, "micro_batch_tokens": 512, "learning_rate": 5e-3, "save_every": 1,
    "keep_checkpoints": 1,
}  # fmt: skip
ENDS = {0, 4, 137}


@dataclass(frozen=True)
class Scene:
    """``action`` is run in a folder ``work`` that ``prepare`` has filled; ``judge`` says what is there afterwards, and
    is to say the same whatever happened on the way; ``sound`` raises AssertionError where something is there by half.
    """

    name: str
    work: Path
    prepare: Callable[[], None]
    action: Callable[[], None]
    judge: Callable[[], Any]
    sound: Callable[[], None]


def peftctl(*arguments: object) -> None:
    """The command, in this process: it ends by SystemExit."""
    from peftctl.cli import main

    before = sys.argv
    sys.argv = ["peftctl", *map(str, arguments)]
    try:
        main()
    finally:
        sys.argv = before


def training(folder: Path, base: Path) -> Scene:
    """A run of four steps that saves after each, keeps one, measures in between and publishes."""
    work = folder / "work"
    sections = {"train": TRAIN, "data": {"train": "../train.jsonl", "eval": {"count": 4}}, "eval": {"every": 2}}
    sections["method"] = {"name": "lora", "rank": 2, "dropout": 0.1}
    tiny.jsonl(folder / "train.jsonl", tiny.chats(16))
    jobs.train(folder, base, "warm", **{**sections, "data": {"eval": {"count": 4}}})  # imports what the children use
    text = jobs.recipe_text(folder, base, "work/run", **sections)

    def prepare() -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        (work / "recipe.yaml").write_text(text)

    def action() -> None:
        peftctl("train", work / "recipe.yaml", "--output", work / "run", "--json")

    def sound() -> None:
        for path in checkpoint.all_of(work / "run"):
            checkpoint.verify(path)

    return Scene("train", work, prepare, action, lambda: jobs.bits(work / "run"), sound)


def merging(folder: Path, base: Path) -> Scene:
    """Merging a run's adapter into its base."""
    work = folder / "work"
    run, _ = jobs.train(folder, base, "run", train={**TRAIN, "max_steps": 2})

    with suppress(SystemExit):
        peftctl("merge", run, folder / "warm", "--json")  # imports what the children use

    def prepare() -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()

    def action() -> None:
        peftctl("merge", run, work / "out", "--json")

    def judge() -> Any:
        return {name: entry for name, entry in inventory(work / "out").items() if name != "manifest.json"}

    def sound() -> None:
        if (work / "out").exists():
            judged = judge()
            assert "model.safetensors" in judged
            assert (work / "out" / "manifest.json").is_file()

    return Scene("merge", work, prepare, action, judge, sound)


def exporting(folder: Path, base: Path) -> Scene:
    """Exporting what a run left as a GGUF file. Unchecked: llama.cpp reads what is there, and writes nothing."""
    work = folder / "work"
    model = gguf_models.save(folder / "model", "smollm")
    run, _ = jobs.train(folder, model, "run", train={**TRAIN, "max_steps": 2})
    command = ("--to", "gguf", "--no-verify", "--json")
    with suppress(SystemExit):
        peftctl("export", run, folder / "warm", *command)  # imports what the children use

    def prepare() -> None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()

    def action() -> None:
        peftctl("export", run, work / "out", *command)

    def judge() -> Any:
        return {name: entry for name, entry in inventory(work / "out").items() if name != "manifest.json"}

    def sound() -> None:
        if (work / "out").exists():
            assert set(judge()) == {"README.md", "model.gguf"}
            assert (work / "out" / "manifest.json").is_file()

    return Scene("export", work, prepare, action, judge, sound)


SCENES = {"train": training, "merge": merging, "export": exporting}


def play(scene: Scene, call: harness.Call, fault: str, expected: Any) -> harness.Ended:
    """Have ``call`` meet with ``fault``, run the same command again, and compare. Raises AssertionError."""
    scene.prepare()
    ended = harness.attempt(scene.action, call, fault)
    about = f"{fault} at {call.name} {call.nth} ({call.what}): exit {ended.code}\n{ended.said[-2000:]}"
    # Threads share a merge's blocks out among them as they come, so that one may make fewer calls than another time.
    assert ended.hit or call.name == "pwrite64", f"the call did not come: {about}"
    assert ended.code in ENDS, about
    scene.sound()
    again = harness.attempt(scene.action, None)
    assert again.code == 0, f"{about}\nthen again: exit {again.code}\n{again.said[-3000:]}"
    assert scene.judge() == expected, about
    left = [str(path) for path in scene.work.rglob("*.partial")]
    assert not left, f"{about}\nleft behind: {left}"
    return ended
