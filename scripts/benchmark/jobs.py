"""What is measured: jobs as plain data, run one at a time, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Job:
    """One training job. ``updates`` optimizer steps of ``rows_per_update`` rows, in the order of the file ``rows``.

    ``tool``: peftctl, trl or trainer. ``batch``, ``dtype`` (bfloat16, autocast, float32), ``packing`` and
    ``gradient_checkpointing`` are a peer's settings; ``defaults`` leaves them to TRL. ``compile`` is peftctl's, and
    ``fast``, which turns all paths of ``train.fast`` on or off.
    """

    name: str
    tool: str
    model: str
    rows: str
    eval_rows: str
    folder: str
    updates: int
    threads: int = 1
    rows_per_update: int = 8
    batch: int = 1
    dtype: str = "bfloat16"
    packing: bool = False
    gradient_checkpointing: bool = False
    defaults: bool = False
    compile: bool = False
    fast: bool = True
    assistant_only: bool = False
    eval: bool = False
    profile: bool = False
    rank: int = 16
    learning_rate: float = 2e-4
    seed: int = 0
    max_length: int = 1024


def run(job: Job, python: str) -> dict[str, Any]:
    """The job's result; a job that fails gives its error's last line as ``error``. ``python`` runs the peers."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True)
    given, answer = folder / "job.json", folder / "result.json"
    answer.unlink(missing_ok=True)
    given.write_text(json.dumps({**asdict(job), "spawned": time.time()}), encoding="utf-8")
    ours = job.tool.startswith("peftctl")
    program = [sys.executable, str(HERE / "ours.py")] if ours else [python, str(HERE / "peers.py")]
    threads = str(job.threads)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    command = [*program, str(given), str(answer)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        return {"error": lines[-1][:200]}
    result: dict[str, Any] = json.loads(answer.read_text("utf-8"))
    return result
