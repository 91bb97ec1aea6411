"""A 2 GB JSONL of 5 million prompts with completions, streamed as training would, from file to micro-batches.

In a process of its own, whose peak memory is what counts. The file is made, and removed again.

    python scripts/proving/stream.py [ROWS]      default: 5,000,000
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1]
sys.path[:0] = [str(SCRIPTS)]

from fetch_model import MODEL
from machine import machine, versions

RESULTS = SCRIPTS.parent / "docs" / "results"
ROWS, BYTES_A_ROW, BATCH, TOKENS = 5_000_000, 400, 256, 8192
MOST = 1.5e9
TEXT = (
    "the model reads a row and learns what the answer says while the question is only read so that a mask which is "
    "wrong by one token shows at once in what comes out when it writes by itself after an hour of training on text"
)
WORDS = TEXT.split()


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(measure(Path(sys.argv[2]), int(sys.argv[3]))))
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory(prefix="peftctl-stream-") as name:
        path = Path(name) / "rows.jsonl"
        began = time.time()
        write(path, rows)
        print(f"{path.stat().st_size / 1e9:.2f} GB written in {time.time() - began:.0f} s", flush=True)
        command = [sys.executable, __file__, "--child", str(path), str(rows)]
        found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
        found["bytes"] = path.stat().st_size
    report({**found, "machine": machine(), "versions": versions()})


def write(path: Path, rows: int) -> None:
    """Rows of about ``BYTES_A_ROW`` bytes each, no two alike."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            digest = hashlib.blake2b(str(number).encode()).digest()
            words = " ".join(WORDS[byte % len(WORDS)] for byte in digest + digest)
            answer = f" {digest[:4].hex()}: {words}"[: BYTES_A_ROW - 60]
            file.write(json.dumps({"prompt": f"What is {number}?", "completion": answer}) + "\n")


def measure(path: Path, rows: int) -> dict[str, Any]:
    import torch
    from transformers import AutoTokenizer

    from peftctl.data.collate import Collator, pad_id
    from peftctl.data.encode import Encoding
    from peftctl.data.stream import Sequential, Stream
    from peftctl.methods.lora import LoraSettings
    from peftctl.model.gguf import plain_folder
    from peftctl.recipe.schema import DataSettings, ModelSettings, Recipe, Source, TrainSettings
    from peftctl.tasks import TASKS, Layout

    tokenizer = AutoTokenizer.from_pretrained(plain_folder(MODEL, lambda _: None))
    data = DataSettings(train=(Source(path=str(path), format="prompt_completion"),), streaming=True)
    recipe = Recipe(ModelSettings(name="m"), data, LoraSettings(), "out", train=TrainSettings(max_steps=1))
    task = TASKS["causal_lm"]
    stream = Stream(recipe, Encoding(task, tokenizer, 512))
    layout = Layout(pad_id(tokenizer), packed=True, multiple=32)
    collate = Collator(task, tokenizer, layout, TOKENS, torch.device("cpu"))
    floor = peak()
    began, cpu = time.time(), time.process_time()
    in_order, batches, peaks = Sequential(stream.rows, BATCH), 0, []
    for step in range(rows // BATCH):
        taken = in_order.take(step)
        for group in collate.groups(taken):
            collate.on_host([taken[index] for index in group])
            batches += 1
        if step % (rows // BATCH // 10 or 1) == 0:
            peaks.append(peak())
    seconds = time.time() - began
    return {
        "rows": rows // BATCH * BATCH,
        "micro_batches": batches,
        "facts": stream.facts(),
        "seconds": seconds,
        "rows_per_s": rows / seconds,
        "rows_per_cpu_s": rows / (time.process_time() - cpu),
        "floor_bytes": floor,
        "peak_bytes": peak(),
        "peaks": peaks,
    }


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(found: dict[str, Any]) -> None:
    facts = found["facts"]
    passed = found["peak_bytes"] < MOST and facts["read"] == facts["kept"]
    grown = ", ".join(f"{value / 1e9:.2f}" for value in found["peaks"])
    text = f"""\
# A set larger than memory, streamed

`scripts/proofs stream`. {found["machine"]}. {found["versions"]}.

{found["bytes"] / 1e9:.2f} GB of JSONL, {facts["read"]:,} rows read and {facts["kept"]:,} kept, {facts["tokens"]:,}
tokens, through tokenizer and mask to {found["micro_batches"]:,} packed micro-batches of up to {TOKENS}
tokens.

| | |
|---|---|
| peak memory of the process | {found["peak_bytes"] / 1e9:.2f} GB (allowed: {MOST / 1e9:g} GB) |
| of which imports and the tokenizer | {found["floor_bytes"] / 1e9:.2f} GB |
| peak after each tenth of the rows, GB | {grown} |
| rows a second | {found["rows_per_s"]:,.0f} |
| rows a CPU-second | {found["rows_per_cpu_s"]:,.0f} |
| time | {found["seconds"] / 60:.1f} minutes |

{"Passed" if passed else "FAILED"}.
"""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "stream.md").write_text(text, encoding="utf-8")
    (RESULTS / "stream.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(text)
    sys.exit(not passed)


if __name__ == "__main__":
    main()
