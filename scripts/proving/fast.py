"""60 updates of SmolLM2-135M with every fast path on, beside the same without any, and beside another adapter start.

Two paths follow each other where each update's losses differ by less than those of two plain runs that see the same
rows and differ in the adapter's random start alone, and where the held-out losses end within 1 %. TRL's curve, where
the bench's environment is there (scripts/bench makes it), stands beside them in the picture.
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
OTHER = "plain, another adapter start"


def main() -> None:
    from transformers import AutoTokenizer

    from peftctl.model.gguf import plain_folder

    folder = plain_folder(MODEL, print)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    all_rows = chats()
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in all_rows]
    lengths = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    short = [row for row, length in zip(all_rows, lengths, strict=True) if length <= LONGEST]
    with tempfile.TemporaryDirectory(prefix="peftctl-proof-") as name:
        scratch = Path(name)
        train = write(scratch / "train.jsonl", short[:-EVAL_ROWS])
        held_out = write(scratch / "eval.jsonl", short[-EVAL_ROWS:])
        fast = Job(
            "fast", "peftctl", str(folder), str(train), str(held_out), "", UPDATES, rows_per_update=ROWS, eval=True
        )
        plain = replace(fast, fast=False)
        jobs = {"fast": fast, "plain": plain, OTHER: replace(plain, seed=1)}
        if PEERS.exists():
            jobs["TRL, 1 row"] = replace(fast, tool="trl")
        placed = {name: replace(job, folder=str(scratch / str(at))) for at, (name, job) in enumerate(jobs.items())}
        with ThreadPoolExecutor(2) as pool:  # one thread each
            results = dict(zip(placed, pool.map(lambda job: run(job, str(PEERS)), placed.values()), strict=True))
    for name, result in results.items():
        if "error" in result:
            sys.exit(f"{name}: {result['error']}")
    report(results)


def report(results: dict[str, Any]) -> None:
    plain, fast, other = (results[name]["losses"] for name in ("plain", "fast", OTHER))
    by_path = [abs(a - b) for a, b in zip(fast, plain, strict=True)]
    by_start = [abs(a - b) for a, b in zip(other, plain, strict=True)]
    # The first updates' losses are of the untrained adapter, which starts at nothing, whatever its random part.
    further = [update + 1 for update, (a, b) in enumerate(zip(by_path, by_start, strict=True)) if a >= b]
    ends = {name: result["eval_loss"] for name, result in results.items()}
    apart = ends["fast"] / ends["plain"] - 1
    lines = "\n".join(f"| {name} | {loss:.4f} | {results[name]['losses'][-1]:.4f} |" for name, loss in ends.items())
    page = f"""# Fast and plain paths, update by update

`scripts/proofs fast`. {machine()}. {versions()}.

{MODEL.name} in bfloat16, LoRA of rank 16 on all linear layers, {UPDATES} updates of {ROWS} rows of up to {LONGEST}
tokens, every token learned. *Fast* has every path of `train.fast` on, *plain* has none.

| | held-out loss after | last update's loss |
|---|---|---|
{lines}

Differences of an update's loss from the plain run's, mean and largest: fast path {mean(by_path):.5f} and
{max(by_path):.5f}; another adapter start {mean(by_start):.5f} and {max(by_start):.5f}. Updates at which the fast path
was further away than the other start: {", ".join(map(str, further)) or "none"}. Held-out losses of fast and plain are
{apart:+.3%} apart.

![Loss of each update](fast.svg)
"""
    (RESULTS / "fast.md").write_text(page, encoding="utf-8")
    (RESULTS / "fast.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    lines_of = {name: result["losses"] for name, result in results.items()}
    (RESULTS / "fast.svg").write_text(curves(lines_of), encoding="utf-8")
    print(page)
    if abs(apart) > 0.01 or len(further) > 1:
        sys.exit("the fast path does not follow the plain one")


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
