"""The recipes of recipes/tasks, and the quickstart's, trained from the command line, and what they have to beat.

    python scripts/proving/tasks.py [TASK ...]      default: all; docs/results/tasks.json keeps those not named

Each in a process of its own: trained, its adapter merged, the time taken. The rivals are those of rivals.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parents[1]
sys.path[:0] = [str(SCRIPTS), str(Path(__file__).parent)]

import rivals
from machine import machine, versions

ROOT = SCRIPTS.parent
FACTS = ROOT / "docs" / "results" / "tasks.json"
PAGE = FACTS.with_suffix(".md")


@dataclass(frozen=True)
class Proof:
    """A ``recipe`` in recipes, the data its ``rivals`` are of, and the ``metrics`` shown: the run's name for each, and
    the rivals'. The first one decides. ``base``: whether the untuned base can be asked the same."""

    recipe: str
    rivals: str
    metrics: Mapping[str, str]
    base: bool = False


PROOFS = {
    "causal_lm": Proof("quickstart", "mails", {"macro_f1": "macro_f1", "accuracy": "accuracy"}, base=True),
    "seq2seq_lm": Proof("tasks/seq2seq_lm", "sounds", {"exact_match": "exact_match", "chrf": "chrf", "bleu": "bleu"}),
    "seq_cls": Proof("tasks/seq_cls", "sentiment", {"macro_f1": "macro_f1", "accuracy": "accuracy"}),
    "token_cls": Proof("tasks/token_cls", "words", {"accuracy": "accuracy", "macro_f1": "macro_f1"}),
    "question_answering": Proof("tasks/question_answering", "meanings", {"exact_match": "exact_match", "f1": "f1"}),
    "feature_extraction": Proof(
        "tasks/feature_extraction", "messages", {"recall_at_1": "recall@1", "recall_at_10": "recall@10", "mrr": "mrr"}
    ),
}


def main() -> None:
    facts: dict[str, Any] = json.loads(FACTS.read_text("utf-8")) if FACTS.exists() else {}
    for name in sys.argv[1:] or PROOFS:
        facts[name] = {**proved(PROOFS[name]), "machine": machine(), "versions": versions()}
        print(json.dumps({name: facts[name]}, indent=1), flush=True)
        FACTS.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n", "utf-8")
        PAGE.write_text(page(facts), "utf-8")


def proved(proof: Proof) -> dict[str, Any]:
    recipe = ROOT / "recipes" / f"{proof.recipe}.yaml"
    with tempfile.TemporaryDirectory(prefix="peftctl-tasks-") as folder:
        run, began = Path(folder) / "run", time.monotonic()
        peftctl("train", str(recipe), "--output", str(run))
        seconds = time.monotonic() - began
        manifest = json.loads((run / "manifest.json").read_text("utf-8"))
        merged = ""
        if manifest["artifact"] == "adapter":
            peftctl("merge", str(run), str(Path(folder) / "merged"))
            checked = json.loads((Path(folder) / "merged" / "manifest.json").read_text("utf-8"))["checked"]
            merged = f"{checked['relative_difference']:.2g}"
        others = rivals.rounded(rivals.TASKS[proof.rivals](rivals.MODEL))
        if proof.base:
            said = json.loads(peftctl("eval", str(run), "--on", "base", "--json"))["base"]
            others["the untuned base"] = {key: round(flat(said)[key], 4) for key in proof.metrics}
    metrics = flat(manifest["metrics"])
    return {
        "seconds": round(seconds),
        "rows": {side: manifest["data"][side]["kept"] for side in ("train", "eval")},
        "method": manifest["method"]["name"],
        "steps": manifest["steps"],
        "metrics": {key: round(metrics[key], 4) for key in proof.metrics},
        "decides": next(iter(proof.metrics.items())),
        "merged_difference": merged,
        "rivals": others,
    }


def flat(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Metrics with those of what was chosen or written among them."""
    return {**metrics, **(metrics.get("likeliest") or {}), **(metrics.get("written") or {})}


def peftctl(*arguments: str) -> str:
    """What the command prints, which is shown, too."""
    print("peftctl", *arguments, flush=True)
    command = [sys.executable, "-m", "peftctl.cli", *arguments]
    with subprocess.Popen(command, env=os.environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line)
    if process.returncode:
        raise SystemExit(process.returncode)
    return "".join(said)


def page(facts: Mapping[str, Any]) -> str:
    lines = [
        "# Tasks",
        "",
        "The recipe of each task in recipes/tasks, and the quickstart's, trained from the command line with its seed",
        "(0), measured on held-out rows that share no source with training (recipes/data/README.md), beside simpler",
        "ways on the same rows. Time is that of the whole command, measuring included.",
        "",
        "`scripts/proofs tasks` made this.",
    ]
    for name, found in ((name, facts[name]) for name in PROOFS if name in facts):
        proof = PROOFS[name]
        rows = found["rows"]
        lines += [
            "",
            f"## {name}",
            "",
            f"{rows['train']:,} rows and {rows['eval']:,} held out, {found['method']}, {found['steps']:,} steps, "
            f"{found['seconds'] // 60} min {found['seconds'] % 60} s."
            + (
                f" Merged, the outputs differ by {found['merged_difference']} of their norm."
                if found["merged_difference"]
                else ""
            ),
            "",
            f"| | {' | '.join(proof.metrics)} |",
            f"|---|{'---:|' * len(proof.metrics)}",
        ]
        for rival, figures in found["rivals"].items():
            lines.append(f"| {rival} | {' | '.join(_figure(figures, key) for key in proof.metrics.values())} |")
        own = " | ".join(f"**{found['metrics'][key]:.3f}**" for key in proof.metrics)
        lines.append(f"| **peftctl** | {own} |")
        lines += ["", f"{found['machine']}; {found['versions']}"]
    return "\n".join([*lines, ""])


def _figure(figures: Mapping[str, float], key: str) -> str:
    return f"{figures[key]:.3f}" if key in figures else ""


if __name__ == "__main__":
    main()
