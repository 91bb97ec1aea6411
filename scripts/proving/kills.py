"""The training of SmolLM2-135M killed at random times (SIGKILL), and gone on with by the same command.

python scripts/proving/kills.py
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
SCRIPTS = Path(__file__).parents[1]
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent)]

from machine import machine, versions

RESULTS = SCRIPTS.parent / "docs" / "results"
STEPS, TRIALS, KILLS = 24, 4, 4


def main() -> None:
    from tests.crash import real

    with tempfile.TemporaryDirectory(prefix="peftctl-kills-") as folder:
        expected, seconds = real.whole(Path(folder) / "whole", STEPS)
        print(f"the whole run: {seconds:.0f} s", flush=True)
        trials = []
        for seed in range(TRIALS):
            found = real.trial(Path(folder) / f"killed-{seed}", STEPS, KILLS, seconds, seed, expected)
            print(found, flush=True)
            trials.append(asdict(found))
    facts = {"machine": machine(), "versions": versions(), "steps": STEPS, "seconds": seconds, "trials": trials}
    (RESULTS / "kills.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    lines = [
        "# A real model's training killed at random times",
        "",
        f"SmolLM2-135M, LoRA of rank 16 with dropout on mails, {STEPS} steps, a checkpoint after each, measured "
        f"every third. Undisturbed it takes {seconds:.0f} seconds, start and publishing included. Each trial kills it "
        f"up to {KILLS} times (SIGKILL) at random times after its start and then lets it end. Compared are the bits of "
        "the adapter, of the last checkpoint (optimizer and losses among them), the log and the metrics.",
        "",
        "`scripts/proofs kills` made this.",
        "",
        "| killed after (seconds) | went on after step | the same bits |",
        "|---|---|---|",
    ]
    for each in trials:
        kills, steps = (", ".join(str(number) for number in each[name]) for name in ("kills", "steps"))
        lines.append(f"| {kills} | {steps} | {'yes' if each['same'] else '**no**'} |")
    lines += ["", f"{machine()}; {versions()}", ""]
    (RESULTS / "kills.md").write_text("\n".join(lines), "utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
