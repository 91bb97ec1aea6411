"""What a merged model writes beside what base and adapter write: 50 prompts, greedy, on a real model in float32.

Adapters of every method that merges and has a recipe of its own, trained for some steps on SmolLM2-135M at ten times
their rate, so that they have something to say.

    python scripts/proving/merged_text.py [NAME ...]      default: all
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1]
sys.path[:0] = [str(SCRIPTS)]

from machine import machine, versions

ROOT = SCRIPTS.parent
RESULTS = ROOT / "docs" / "results"
STEPS, NEW_TOKENS, BATCH = 12, 24, 10
# Each by a recipe of recipes/methods, and what else of it is set.
METHODS: dict[str, tuple[str, list[str]]] = {
    "lora": ("lora", []),
    "dora": ("lora", ["method.dora=true"]),
    "adalora": ("adalora", []),
    "ia3": ("ia3", []),
    "loha": ("loha", []),
    "lokr": ("lokr", []),
    "ln_tuning": ("ln_tuning", []),
}
SHORT = [
    "train.epochs=null", f"train.max_steps={STEPS}", "train.batch_size=4", "data.max_length=96",
    "data.overlong=truncate_start", "data.train[0].limit=100", "data.eval.limit=4", "eval.choices=null",
    "model.dtype=float32",
]  # fmt: skip
SUBJECTS = (
    "the sea", "an old clock", "baking bread", "the number seven", "a lost key", "winter", "the moon", "a train",
    "a library", "rain", "the colour green", "a bicycle", "friendship", "a garden", "the news", "mountains", "honesty",
    "a violin", "breakfast", "the post office", "stars", "a bridge", "silence", "the market", "a good teacher",
)  # fmt: skip
ASKED = ("Tell me something about {}.", "Write one short sentence in which {} matters.")
PROMPTS = [asked.format(subject) for subject in SUBJECTS for asked in ASKED]


def main() -> None:
    os.chdir(ROOT)
    from peftctl.quiet import quiet_libraries

    quiet_libraries()
    found = {}
    for name in sys.argv[1:] or list(METHODS):
        with tempfile.TemporaryDirectory(prefix="peftctl-merged-") as scratch:
            found[name] = measured(name, Path(scratch))
        print(name, json.dumps(found[name]), flush=True)
    if not sys.argv[1:]:
        report(found)
    sys.exit(any(facts["same"] < len(PROMPTS) for facts in found.values()))


def measured(name: str, scratch: Path) -> dict[str, Any]:
    from transformers import AutoModelForCausalLM

    import peftctl
    from peftctl.events import Events
    from peftctl.merge.merge import Options, merge
    from peftctl.merge.source import open_source
    from peftctl.methods import METHODS as KNOWN
    from peftctl.recipe import load
    from peftctl.train import job

    recipe, settings = METHODS[name]
    rate = 10 * KNOWN[recipe].learning_rate
    path = ROOT / "recipes" / "methods" / f"{recipe}.yaml"
    run = job.train(load(path, str(scratch / "run"), [*SHORT, f"train.learning_rate={rate}", *settings]), "", Events())
    began = time.monotonic()
    facts = merge(open_source(run, None, lambda _: None), scratch / "merged", Options())
    seconds = time.monotonic() - began
    loaded = peftctl.load(run)
    of_adapter = texts(loaded.model, loaded.tokenizer)
    with loaded.base() as base:
        of_base = texts(base, loaded.tokenizer)
    of_merged = texts(AutoModelForCausalLM.from_pretrained(scratch / "merged").eval(), loaded.tokenizer)
    return {
        "same": sum(one == other for one, other in zip(of_adapter, of_merged, strict=True)),
        "other_than_base": sum(one != other for one, other in zip(of_adapter, of_base, strict=True)),
        "relative_difference": facts["checked"]["relative_difference"],
        "tolerance": facts["checked"]["tolerance"],
        "seconds": seconds,
    }


def texts(model: Any, tokenizer: Any) -> Sequence[tuple[int, ...]]:
    """The ids that the model writes after each prompt."""
    import torch

    tokenizer.padding_side = "left"
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    written: list[tuple[int, ...]] = []
    for first in range(0, len(chats), BATCH):
        inputs = tokenizer.apply_chat_template(
            chats[first : first + BATCH],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.no_grad():
            made = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        written += [tuple(row) for row in made[:, inputs["input_ids"].shape[1] :].tolist()]
    return written


def report(found: dict[str, Any]) -> None:
    lines = [
        f"| {name} | {facts['same']} of {len(PROMPTS)} | {facts['other_than_base']} | "
        f"{facts['relative_difference']:.1e} | {facts['tolerance']:.1e} |"
        for name, facts in found.items()
    ]
    text = f"""\
# What a merged model writes

`scripts/proofs merged_text`. {machine()}. {versions()}.

SmolLM2-135M-Instruct in float32, adapters of {STEPS} steps: for how many of {len(PROMPTS)} prompts the merged
model writes, greedily, the same {NEW_TOKENS} tokens as base and adapter; for how many the adapter writes other ones
than the base, so that it shows; and the difference of logits that merging itself measured, relative to their norm, with
what it allows.

| method | the same text | other than the base's | difference of logits | allowed |
|---|---|---|---|---|
{chr(10).join(lines)}
"""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "merged_text.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
