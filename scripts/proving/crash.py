"""Training, merging and exporting killed, or failed, at every system call that changes the disk: the same command again
gives the same bits.

Needs strace. A run of four steps that saves after each, measures, and publishes; the merge of what it left; and its
export as a GGUF file.

    python scripts/proving/crash.py [train | merge | export ...]      default: all; crash.json keeps those not named
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
SCRIPTS = Path(__file__).parents[1]
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS.parent)]

from machine import machine, versions

RESULTS = SCRIPTS.parent / "docs" / "results"


def main() -> None:
    from tests import tiny
    from tests.crash import scenes

    facts = RESULTS / "crash.json"
    found = json.loads(facts.read_text("utf-8"))["scenes"] if sys.argv[1:] and facts.exists() else {}
    for name in sys.argv[1:] or list(scenes.SCENES):
        with tempfile.TemporaryDirectory(prefix="peftctl-crash-") as folder:
            os.environ["PEFTCTL_CACHE"] = f"{folder}/cache"
            Path(folder, "cache").mkdir()
            base = tiny.save(Path(folder) / "base")
            found[name] = proved(scenes.SCENES[name](Path(folder), base))
    report(found)


def proved(scene: object) -> dict[str, object]:
    from tests.crash import harness, scenes

    began = time.monotonic()
    scene.prepare()
    assert harness.attempt(scene.action, None).code == 0
    expected = scene.judge()
    scene.prepare()
    calls = harness.record(scene.action, scene.work)
    points = [(call, fault) for call in calls for fault in call.faults]
    print(f"{scene.name}: {len(calls)} calls, {len(points)} points", flush=True)
    ends: Counter[str] = Counter()
    wrong = []
    for number, (call, fault) in enumerate(points, start=1):
        try:
            ended = scenes.play(scene, call, fault, expected)
            what = "killed" if fault == "SIGKILL" else fault
            ends[f"{what}: exit {ended.code}" if ended.hit else "the call did not come"] += 1
        except AssertionError as error:
            wrong.append(str(error)[:3000])
            print(f"WRONG {error}", flush=True)
        if number % 50 == 0:
            print(f"{number} of {len(points)}, {time.monotonic() - began:.0f} s", flush=True)
    return {
        "calls": dict(Counter(call.name for call in calls)),
        "points": len(points),
        "ends": dict(sorted(ends.items())),
        "wrong": wrong,
        "seconds": round(time.monotonic() - began),
    }


def report(found: dict[str, dict[str, object]]) -> None:
    facts = {"machine": machine(), "versions": versions(), "scenes": found}
    (RESULTS / "crash.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    lines = [
        "# Killed and failed at every system call",
        "",
        "A run of four steps that saves after each, measures on held-out rows and publishes its adapter; the merge of "
        "that adapter; and its export as a GGUF file. Every call that changes something in their directories is taken "
        "once for each fault: the process is killed there (SIGKILL), or the call fails as on a full (ENOSPC) or broken "
        "(EIO) disk. Then the same command runs again, undisturbed. Counted as right: it ends well, every checkpoint "
        "that had its name is whole; adapter, optimizer, losses, metrics and log (or the files of the merged model, or "
        "of the export) are the same bits as those of a run that nothing happened to, and nothing half-written is "
        "left.",
        "",
        "`scripts/proofs crash` made this.",
        "",
    ]
    for name, scene in found.items():
        calls = ", ".join(f"{count} {call}" for call, count in scene["calls"].items())
        lines += [f"## {name}", "", f"{calls}: {scene['points']:,} points, {len(scene['wrong'])} of them wrong.", ""]
        lines += ["| fault, and how the process ended | times |", "|---|---:|"]
        lines += [f"| {end} | {count} |" for end, count in scene["ends"].items()] + [""]
    lines += [f"{machine()}; {versions()}", ""]
    (RESULTS / "crash.md").write_text("\n".join(lines), "utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
