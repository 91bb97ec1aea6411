"""60 updates of SmolLM2-135M with every fast path on, beside the same without any, and beside another adapter start.

In float32 the two paths follow each other: each update's losses differ by less than those of two plain runs that see
the same rows and differ in the adapter's random start alone, and the held-out losses end within 1 %. In bfloat16 the
plain path is not what is to be followed: it rounds the frozen product before it adds the update, and so loses updates
that are smaller than that rounding. There the fast path has to be the nearer of the two to float32.

    python scripts/proving/fast.py [float32 | bfloat16]      one of them alone; the other's figures stay
"""

from __future__ import annotations

import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1]
sys.path[:0] = [str(SCRIPTS), str(SCRIPTS / "benchmark")]

from fetch_model import MODEL
from jobs import Job, run
from machine import machine, versions
from picture import curves
from rows import chats, write

RESULTS = SCRIPTS.parent / "docs" / "results"
UPDATES, ROWS, LONGEST, EVAL_ROWS = 60, 4, 384, 24
PEERS = SCRIPTS.parent / ".bench" / "bin" / "python"
FAST, PLAIN, OTHER = "fast", "plain", "plain, another adapter start"


def main() -> None:
    from transformers import AutoTokenizer

    from peftctl.model.gguf import plain_folder

    folder = plain_folder(MODEL, print)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    all_rows = chats()
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in all_rows]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    short = [row for row, length in zip(all_rows, lengths, strict=True) if length <= LONGEST]
    old = RESULTS / "fast.json"
    found = json.loads(old.read_text("utf-8")) if len(sys.argv) > 1 and old.exists() else {}
    with tempfile.TemporaryDirectory(prefix="peftctl-proof-") as name:
        scratch = Path(name)
        train = write(scratch / "train.jsonl", short[:-EVAL_ROWS])
        held_out = write(scratch / "eval.jsonl", short[-EVAL_ROWS:])
        base = Job(
            FAST, "peftctl", str(folder), str(train), str(held_out), "", UPDATES, rows_per_update=ROWS, eval=True
        )
        for dtype in sys.argv[1:] or ("float32", "bfloat16"):
            found[dtype] = results(replace(base, dtype=dtype), scratch)
    report(found)


def results(fast: Job, scratch: Path) -> dict[str, Any]:
    """Of each path what its updates came to, two at a time, with a thread each."""
    plain = replace(fast, fast=False)
    jobs = {PLAIN: plain, OTHER: replace(plain, seed=1), FAST: fast}
    if PEERS.exists():
        jobs["TRL, 1 row"] = replace(fast, tool="trl")
    placed = {name: replace(job, folder=str(scratch / str(at))) for at, (name, job) in enumerate(jobs.items())}
    with ThreadPoolExecutor(2) as pool:
        made = dict(zip(placed, pool.map(lambda job: run(job, str(PEERS)), placed.values()), strict=True))
    for name, result in made.items():
        if "error" in result:
            sys.exit(f"{name}: {result['error']}")
    return made


def report(found: dict[str, Any]) -> None:
    exact, rounded = found["float32"], found["bfloat16"]
    truth = exact[PLAIN]["losses"]
    by_path = apart(exact[FAST]["losses"], truth)
    by_start = apart(exact[OTHER]["losses"], truth)
    # At the first update the adapter's random part is multiplied by zero: there both differences are rounding.
    further = [at for at, (a, b) in enumerate(zip(by_path, by_start, strict=True), start=1) if a >= b and at > 1]
    fast, plain = apart(rounded[FAST]["losses"], truth), apart(rounded[PLAIN]["losses"], truth)
    ends = exact[FAST]["eval_loss"] / exact[PLAIN]["eval_loss"] - 1
    lines = "\n".join(
        f"| {dtype} | {name} | {result['eval_loss']:.4f} | {result['losses'][-1]:.4f} |"
        for dtype, results in found.items()
        for name, result in results.items()
    )
    page = f"""# Fast and plain paths, update by update

`scripts/proofs fast`. {machine()}.
{versions()}.

{MODEL.name}, LoRA of rank 16 on all linear layers, {UPDATES} updates of {ROWS} rows of up to {LONGEST} tokens, every
token learned. *Fast* has every path of `train.fast` on, *plain* has none. The held-out loss is that of the saved
adapter by plain PEFT in bfloat16 (TRL's: of its model as trained).

| | | held-out loss after | last update's loss |
|---|---|---|---|
{lines}

**In float32** the losses of fast and plain are {mean(by_path):.6f} apart in the mean and {max(by_path):.6f} at most;
those of two plain runs with another adapter start {mean(by_start):.6f} and {max(by_start):.6f}. Updates, after the
first, at which the fast path was further away than the other start: {", ".join(map(str, further)) or "none"}. Held-out
losses are {ends:+.4%} apart.

**In bfloat16** the fast path is {mean(fast):.4f} from plain float32 in the mean ({max(fast):.4f} at most), the plain
path {mean(plain):.4f} ({max(plain):.4f}). PEFT's plain path adds the update to a product that is rounded to bfloat16
already, and rounds again: an update smaller than half of the last place is lost, as all are at the beginning. The fast
path's one product adds both in float32 and rounds once.

![Loss of each update](fast.svg)
"""
    (RESULTS / "fast.md").write_text(page, encoding="utf-8")
    (RESULTS / "fast.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines_of = {
        f"{name}, {dtype}": r["losses"] for dtype, of in found.items() for name, r in of.items() if name != OTHER
    }
    (RESULTS / "fast.svg").write_text(curves(lines_of), encoding="utf-8")
    print(page)
    if abs(ends) > 0.01 or further or mean(fast) > mean(plain):
        sys.exit("the fast path does not follow the plain one")


def apart(losses: list[float], others: list[float]) -> list[float]:
    return [abs(a - b) for a, b in zip(losses, others, strict=True)]


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
