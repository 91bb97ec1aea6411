"""The measuring part of scripts/gpu-acceptance: tokens a second, MFU and peak memory beside TRL, as JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from jobs import Job, run
from main import peer_versions, prepare
from matrix import needed, rate

sys.path.insert(0, str(Path(__file__).parents[1]))
from fetch_model import MODEL
from machine import machine, versions

RESULT = Path(__file__).parents[2] / "docs" / "results" / "gpu.json"
UPDATES, ROWS = 12, 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", required=True)
    parser.add_argument("--tests", required=True, type=Path)
    given = parser.parse_args()
    import torch

    from peftctl.model.gguf import plain_folder

    suite = ElementTree.parse(given.tests).getroot()
    counts = {key: sum(int(each.get(key, 0)) for each in suite.iter("testsuite")) for key in ("tests", "skipped")}
    folder = plain_folder(MODEL, print)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    found: dict[str, Any] = {
        "gpu": torch.cuda.get_device_name(), "machine": machine(), "versions": versions(), "cuda": torch.version.cuda,
        "peers": peer_versions(given.peers), "gpu_tests": counts, "jobs": {},
    }  # fmt: skip
    measured = rate(config, 1, "cuda")
    found["matrix_rate"] = measured
    with tempfile.TemporaryDirectory(prefix="peftctl-gpu-") as scratch:
        lengths, train, held_out = prepare(folder, Path(scratch))
        base = Job("", "", str(folder), str(train), str(held_out), scratch, UPDATES, threads=8, rows_per_update=ROWS)
        work = needed(config, lengths, sum(lengths) - len(lengths), base.rank) / sum(lengths)
        tokens = [sum(lengths[at : at + ROWS]) for at in range(0, len(lengths), ROWS)]
        for job in (
            replace(base, name="peftctl", tool="peftctl"),
            replace(base, name="TRL, 8 rows", tool="trl", batch=8),
            replace(base, name="TRL, 8 rows, checkpointing", tool="trl", batch=8, gradient_checkpointing=True),
            replace(base, name="TRL, its defaults", tool="trl", defaults=True),
        ):
            result = run(job, given.peers)
            found["jobs"][job.name] = figures(result, tokens, work, measured, timed=not job.defaults)
            print(job.name, found["jobs"][job.name], flush=True)
    RESULT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"written: {RESULT}")


def figures(result: dict[str, Any], tokens: list[int], work: float, measured: float, *, timed: bool) -> dict[str, Any]:
    """What a job came to. MFU: the work that cannot be done without, a second, of the device's own matrix rate."""
    if "error" in result:
        return result
    steps = list(zip(tokens, result["wall_s"], strict=False))[2:]
    speed = statistics.median(count / wall for count, wall in steps) if timed else None
    return {
        "tokens_per_s": speed,
        "mfu": speed * work / measured if speed else None,
        "peak_gpu_bytes": result["peak_gpu_bytes"],
        "first_step_s": result["first_step_s"],
        "losses": result["losses"],
    }


if __name__ == "__main__":
    main()
