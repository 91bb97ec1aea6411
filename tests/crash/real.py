"""The training of a real model, killed from outside at times that nobody chose."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import jobs

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "train.epochs=null", "train.batch_size=4", "data.max_length=64", "data.overlong=truncate_start",
    "data.train[0].limit=120", "data.eval.limit=4", "eval.choices=null", "method.dropout=0.1", "train.save_every=1",
    "eval.every=3",
]  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """``kills``: the seconds after which each try was killed; ``steps``: after which step each went on."""

    kills: tuple[float, ...]
    steps: tuple[int, ...]
    same: bool
    seconds: float


def command(output: Path, steps: int) -> list[str]:
    recipe = ROOT / "recipes" / "quickstart.yaml"
    settings = [part for each in [*SETTINGS, f"train.max_steps={steps}"] for part in ("--set", each)]
    return [sys.executable, "-m", "peftctl.cli", "train", str(recipe), "--output", str(output), *settings]


def whole(output: Path, steps: int) -> tuple[dict[str, Any], float]:
    """A run that nothing happened to: its bits, and how long it took."""
    began = time.monotonic()
    done = subprocess.run(command(output, steps), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return jobs.bits(output), time.monotonic() - began


def trial(output: Path, steps: int, kills: int, seconds: float, seed: int, expected: dict[str, Any]) -> Trial:
    """The same run killed ``kills`` times, each within ``seconds`` of its start, and then left to end."""
    chance, began = random.Random(seed), time.monotonic()
    times = []
    for _ in range(kills):
        after = chance.uniform(0.1 * seconds, 0.4 * seconds)  # what is left to do grows shorter with each
        running = subprocess.Popen(command(output, steps), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            running.wait(after)
        except subprocess.TimeoutExpired:
            os.kill(running.pid, signal.SIGKILL)
            running.wait()
            times.append(round(after, 2))
    done = subprocess.run(command(output, steps), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = jobs.bits(output)
    log = jobs.events(output)
    resumed = tuple(event["step"] for event in log if event["event"] == "resumed")
    return Trial(tuple(times), resumed, found == expected, round(time.monotonic() - began, 1))
