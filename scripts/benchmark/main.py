"""The bench: see scripts/bench."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jobs import Job, run
from matrix import needed
from report import page, text

sys.path.insert(0, str(Path(__file__).parents[1]))
from fetch_model import MODEL
from machine import machine, versions
from rows import chats, write

RESULTS = Path(__file__).parents[2] / "docs" / "results"
MAX_LENGTH = 1024
EVAL_ROWS = 16
WARM_UP = 1  # updates that are not counted: they prepare what later ones use

Result = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", required=True, help="Python of the peers' environment")
    parser.add_argument("--quick", action="store_true", help="one short round, printed only")
    parser.add_argument("--only", nargs="*", default=(), help="names of the jobs to run; printed only")
    parser.add_argument("--rows", action="store_true", help="measure the preparing of rows alone, and write it anew")
    given = parser.parse_args()
    began = time.time()
    old = json.loads((RESULTS / "bench.json").read_text("utf-8")) if given.rows else {}
    with tempfile.TemporaryDirectory(prefix="peftctl-bench-") as name:
        setting = Setting(Path(name), given.peers, quick=given.quick)
        found = {**old, **({} if given.rows else measure(setting, given.only))}
        if not given.only:
            found |= {"rows": prepared_rows(setting), "rows_machine": machine(), "start_up_s": start_up(given.peers)}
    if not given.rows:
        found["minutes"] = round((time.time() - began) / 60, 1)
    print(text(found))
    if not given.quick and not given.only:
        (RESULTS / "bench.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "bench.md").write_text(page(found), encoding="utf-8")
        print(f"written: {RESULTS / 'bench.md'}, {RESULTS / 'bench.json'}")


class Setting:
    """The model, the rows and the peers that everything is measured with."""

    def __init__(self, scratch: Path, python: str, *, quick: bool) -> None:
        from peftctl.model.gguf import plain_folder

        self.scratch, self.python, self.quick = scratch, python, quick
        self.model = plain_folder(MODEL, print)
        self.config = json.loads((self.model / "config.json").read_text("utf-8"))
        self.lengths, train, held_out = prepare(self.model, scratch)
        self.base = Job("", "", str(self.model), str(train), str(held_out), str(scratch / "job"), updates=0)


def measure(setting: Setting, only: Sequence[str]) -> Result:
    """Training, one job after another."""
    base, lengths = setting.base, setting.lengths
    found: Result = {
        "machine": machine(), "versions": versions(), "peers": peer_versions(setting.python), "model": MODEL.name,
        "quick": setting.quick, "jobs": {}, "rate": {}, "rows": {},
    }  # fmt: skip
    for threads in (1, 2):
        program = [sys.executable, str(Path(__file__).parent / "matrix.py")]
        command = [*program, str(setting.model / "config.json"), str(threads)]
        measured = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found["rate"][str(threads)] = json.loads(measured)
    taken = lengths[: base.rows_per_update * 4]
    found["work_per_token"] = needed(setting.config, taken, sum(taken) - len(taken), base.rank) / sum(taken)
    for job in plan(base, quick=setting.quick):
        if only and job.name not in only:
            continue
        result = run(job, setting.python)
        tokens = [sum(lengths[at : at + job.rows_per_update]) for at in range(0, len(lengths), job.rows_per_update)]
        note(found, job, result, tokens)
        print(f"{time.strftime('%H:%M:%S')}  {job.name}: {said(found['jobs'][job.name])}", flush=True)
    return found


def prepared_rows(setting: Setting) -> Result:
    """The preparing of many chats, by peftctl and by TRL in turn."""
    found: Result = {}
    for learned in ("all", "assistant"):
        count = 2_000 if setting.quick else 100_000 if learned == "all" else 10_000
        rows = write(setting.scratch / "many.jsonl", many(count))
        for tool in ("peftctl_rows", "trl_rows"):
            job = replace(setting.base, tool=tool, rows=str(rows), assistant_only=learned == "assistant", threads=2)
            found.setdefault(learned, {})[tool] = run(job, setting.python)
            print(f"{time.strftime('%H:%M:%S')}  {count} rows, {learned}: {tool} {found[learned][tool]}", flush=True)
    return found


def plan(base: Job, *, quick: bool) -> Iterable[Job]:
    """The jobs in the order of their running: what is compared directly goes A B A B."""
    ours = replace(base, name="peftctl", tool="peftctl", updates=3 if quick else 5)
    fast = replace(ours, name="peftctl, compile", compile=True)
    one = replace(base, name="TRL, 1 row", tool="trl", updates=2 if quick else 3, batch=1)
    four = replace(one, name="TRL, 4 padded rows", updates=2, batch=4)
    if quick:
        return [ours, one, four]
    pairs = [ours, fast, one, four]
    pairs += [replace(ours, eval=True), replace(fast, eval=True), replace(one, updates=5, eval=True), four]
    for _ in range(2):
        pairs += [replace(each, name=f"{each.name}, 2 threads", threads=2) for each in (ours, fast, one)]
    pairs += [replace(each, name=f"{each.name}, assistant only", assistant_only=True) for each in (ours, fast, one)]
    few = replace(one, updates=2, rows_per_update=4)
    pairs += [
        replace(few, name="TRL, 2 rows", batch=2),
        replace(few, name="TRL, 8 rows", batch=8, rows_per_update=8),
        replace(few, name="TRL, 1 row, float32", dtype="float32"),
        replace(few, name="TRL, 1 row, autocast", dtype="autocast"),
        replace(few, name="TRL, packing", packing=True),
        replace(few, name="TRL, its defaults", defaults=True),
        replace(few, name="Trainer + PEFT, 1 row", tool="trainer"),
        replace(few, name="Trainer + PEFT, 4 rows", tool="trainer", batch=4),
    ]
    return [*pairs, replace(fast, name="profile", updates=3, profile=True)]


def note(found: Result, job: Job, result: Result, tokens: Sequence[int]) -> None:
    """Add one process's figures to its job's. Every tool took the same rows, so its tokens are the rows' own."""
    entry = found["jobs"].setdefault(
        job.name, {"per_s": [], "per_cpu_s": [], "peak": [], "floor": [], "first_step_s": [], "threads": job.threads}
    )
    if "error" in result:
        entry["error"] = result["error"]
        return
    steps = list(zip(tokens, result["wall_s"], result["cpu_s"], strict=False))[WARM_UP:]
    if job.defaults or job.packing:  # other rows an update: how many tokens those had is not known
        steps = []
        entry["seconds_per_update"] = result["wall_s"]
    entry["per_s"] += [count / wall for count, wall, _ in steps]
    entry["per_cpu_s"] += [count / cpu for count, _, cpu in steps]
    entry["peak"].append(result["peak_bytes"])
    entry["floor"].append(result["floor_bytes"])
    entry["first_step_s"].append(result["first_step_s"])
    entry["losses"] = max(entry.get("losses", []), result["losses"], key=len)
    for key in ("eval_loss", "operators"):
        if result.get(key) is not None:
            entry[key] = result[key]


def said(entry: Result) -> str:
    if "error" in entry:
        return f"failed: {entry['error']}"
    if not entry["per_cpu_s"]:
        return f"{entry['seconds_per_update']} s an update, peak {max(entry['peak']) / 1e9:.2f} GB"
    speed, peak = statistics.median(entry["per_cpu_s"]), max(entry["peak"]) / 1e9
    return f"{speed:.0f} tokens a CPU-second, peak {peak:.2f} GB, first step {entry['first_step_s'][-1]:.1f} s"


def prepare(model: Path, scratch: Path) -> tuple[list[int], Path, Path]:
    """Rows that no tool has to cut: their lengths in tokens, the training rows, and held-out ones."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = chats()
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    kept = [(row, length) for row, length in zip(rows, lengths, strict=True) if length <= MAX_LENGTH]
    train, held_out = kept[:-EVAL_ROWS], kept[-EVAL_ROWS:]
    write(scratch / "train.jsonl", [row for row, _ in train])
    write(scratch / "eval.jsonl", [row for row, _ in held_out])
    return [length for _, length in train], scratch / "train.jsonl", scratch / "eval.jsonl"


def many(count: int) -> list[Any]:
    """So many chats, no two alike."""
    rows = chats()
    made = []
    for number in range(count):
        question, answer = rows[number % len(rows)]["messages"]
        question = {**question, "content": f"{question['content']} ({number})"}
        made.append({"messages": [question, answer]})
    return made


def start_up(python: str) -> dict[str, float]:
    """Seconds that each command line takes to say what it can do, the median of three."""
    commands = {
        "peftctl --help": [str(Path(sys.executable).parent / "peftctl"), "--help"],
        "trl --help": [str(Path(python).parent / "trl"), "--help"],
    }
    found = {}
    for name, command in commands.items():
        taken = []
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run(command, capture_output=True, check=False)
            taken.append(time.perf_counter() - began)
        found[name] = sorted(taken)[1]
    return found


def peer_versions(python: str) -> str:
    names = ("trl", "torch", "transformers", "peft", "accelerate")
    code = f"import importlib.metadata as m; print(', '.join(f'{{p}} {{m.version(p)}}' for p in {names}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
