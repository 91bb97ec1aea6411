"""One job of peftctl, with the same clocks as the peers'.

python scripts/benchmark/ours.py JOB.json RESULT.json
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from peers import held_out_loss, peak_bytes, peak_gpu_bytes


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    import torch

    torch.set_num_threads(job["threads"])
    result = {"peftctl": train, "peftctl_rows": rows}[job["tool"]](job)
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def recipe(job: dict[str, Any]) -> str:
    """The job as a recipe."""
    return yaml.safe_dump(
        {
            "model": {"name": job["model"], "dtype": job["dtype"]},
            "data": {
                "train": {"path": job["rows"], "format": "messages"},
                "learn": "assistant" if job["assistant_only"] else "all",
                "max_length": job["max_length"],
            },
            "method": {"name": "lora", "rank": job["rank"], "targets": "all-linear"},
            "train": {
                "max_steps": job["updates"],
                "batch_size": job["rows_per_update"],
                "learning_rate": job["learning_rate"],
                "schedule": "constant",
                "warmup_ratio": 0.0,
                "seed": job["seed"],
                "fast": {**dict.fromkeys(("packed", "loss", "lora", "norm"), job["fast"]), "compile": job["compile"]},
            },
            "output": str(Path(job["folder"]) / "run"),
        }
    )


def train(job: dict[str, Any]) -> dict[str, Any]:
    """``peftctl train``, in this process, listening to its events. Rows are taken in the order of the file."""
    import accelerate  # noqa: F401 - what the floor of memory is made of, as for the peers
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    floor = peak_bytes()
    import numpy as np

    from peftctl.data import batches
    from peftctl.events import Events
    from peftctl.recipe import load
    from peftctl.train import job as training

    batches._order = lambda seed, epoch, rows: np.arange(rows)
    path = Path(job["folder"]) / "recipe.yaml"
    path.write_text(recipe(job), encoding="utf-8")
    shutil.rmtree(Path(job["folder"]) / "run", ignore_errors=True)
    ticks: list[tuple[float, float]] = []
    steps: list[dict[str, Any]] = []
    first_step = 0.0
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) if job["profile"] else None

    def listen(event: Any) -> None:
        nonlocal first_step
        if event["event"] in ("fast", "step"):
            ticks.append((time.perf_counter(), time.process_time()))
        if event["event"] == "step":
            steps.append(dict(event))
            first_step = first_step or time.time() - job["spawned"]
            if profile and event["step"] == 1:  # the first step prepares what later ones use
                profile.__enter__()
            if profile and event["step"] == event["steps"]:
                profile.__exit__(None, None, None)

    run = training.train(load(path), path.read_text("utf-8"), Events(listen))
    peak = max(step["peak_memory_bytes"] for step in steps)
    taken = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(ticks)]
    return {
        "wall_s": [wall for wall, _ in taken],
        "cpu_s": [cpu for _, cpu in taken],
        "losses": [step["loss"] for step in steps],
        "tokens": [step["tokens"] for step in steps],
        "peak_bytes": peak,
        "floor_bytes": floor,
        "peak_gpu_bytes": peak_gpu_bytes(),
        "first_step_s": first_step,
        "eval_loss": held_out(run, job) if job["eval"] else None,
        "operators": operators(profile) if profile else None,
    }


def operators(profile: Any) -> list[tuple[str, int, float]]:
    """Operators by the time in themselves, seconds, with how often they were called."""
    found = [(event.key, event.count, event.self_cpu_time_total / 1e6) for event in profile.key_averages()]
    return sorted(found, key=lambda row: -row[2])


def held_out(run: Path, job: dict[str, Any]) -> float:
    """The loss of the published adapter, loaded by plain PEFT, on held-out rows, by the peers' own arithmetic."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, run / "adapter")
    return held_out_loss(model, AutoTokenizer.from_pretrained(job["model"]), job)


def rows(job: dict[str, Any]) -> dict[str, Any]:
    """How long the training rows take: read, template, ids, mask, packing."""
    from transformers import AutoTokenizer

    from peftctl.data.batches import micro_batches
    from peftctl.data.encode import Encoding, encode
    from peftctl.data.sources import Side, Tally, read_examples
    from peftctl.tasks import TASKS

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    examples = read_examples(Path(job["rows"]), "messages", None, "causal_lm")
    wall, cpu = time.perf_counter(), time.process_time()
    learn = "assistant" if job["assistant_only"] else "all"
    encoding = Encoding(TASKS["causal_lm"], tokenizer, job["max_length"], learn)
    made = encode(Side(examples, Tally(read=len(examples))), encoding, "training")
    micro_batches(made.encoded.lengths.tolist(), job["max_length"], packed=True)
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "rows": len(made)}


if __name__ == "__main__":
    main()
