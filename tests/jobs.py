"""Small whole runs, in process: a recipe as keyword arguments, and what its directory holds afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from peftctl import atomic
from peftctl.events import Events
from peftctl.recipe import load
from peftctl.train import checkpoint, job
from tests import tiny

QUICK = {"epochs": 1, "batch_size": 8, "micro_batch_tokens": 256, "learning_rate": 5e-3}


def recipe_text(folder: Path, base: Path, name: str = "run", **sections: Any) -> str:
    """A recipe over ``folder``'s train.jsonl, made if absent; ``sections`` replace or extend the defaults' keys."""
    if not (folder / "train.jsonl").exists():
        tiny.jsonl(folder / "train.jsonl", tiny.chats(24))
    values: dict[str, Any] = {
        "model": {"name": str(base), "dtype": "float32"},
        "data": {"train": "train.jsonl"},
        "method": {"name": "lora", "rank": 4},
        "train": QUICK,
        "output": str(folder / name),
    }
    for key, value in sections.items():
        old = values.get(key)
        another = isinstance(value, dict) and "name" in value and old and value["name"] != old.get("name")
        values[key] = {**old, **value} if isinstance(value, dict) and old and not another else value
    return yaml.safe_dump(values)


def train(folder: Path, base: Path, name: str = "run", **sections: Any) -> tuple[Path, list[dict[str, Any]]]:
    """Train and return the run directory with the events it emitted."""
    text = recipe_text(folder, base, name, **sections)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    heard: list[dict[str, Any]] = []
    run = job.train(load(path), text, Events(lambda event: heard.append(dict(event))))
    return run, heard


def losses(events: list[dict[str, Any]]) -> list[float]:
    return [event["loss"] for event in events if event["event"] == "step"]


def manifest(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "manifest.json").read_text())
    return facts


def stopped_after(run: Path, step: int, to: Path) -> Path:
    """A copy of a whole run in ``to`` as it was when it was killed after ``step``: its later checkpoints, and what it
    published, are not there; its log goes on for a while."""
    shutil.copytree(run, to)
    (to / "manifest.json").unlink()
    shutil.rmtree(to / manifest(run)["artifact"])
    for path in checkpoint.all_of(to):
        if (checkpoint.step_of(path) or 0) > step:
            shutil.rmtree(path)
    return to


def bits(run: Path) -> dict[str, Any]:
    """All that a run has left that does not depend on the clock: what is to be the same bits."""
    last = checkpoint.all_of(run)[0]
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    timed = {"seconds_per_step", "tokens_per_s", "peak_memory_bytes", "path", "seconds", "cached"}
    steps = [
        {key: value for key, value in event.items() if key not in timed}
        for event in log
        if event["event"] in ("step", "eval", "skipped")
    ]
    artifact = run / manifest(run)["artifact"]
    return {
        "artifact": {file.name: atomic.sha256(file) for file in artifact.iterdir() if file.suffix == ".safetensors"},
        "checkpoint": {file.name: atomic.sha256(file) for file in last.glob("*.safetensors")},
        "step": last.name,
        "log": steps,
        "metrics": manifest(run)["metrics"],
        "losses": manifest(run)["losses"],
    }


def events(run: Path) -> list[dict[str, Any]]:
    """The run's log."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
