"""Every method on every family again, with other seeds and sizes: what the table says must be what is seen, both ways.

    python scripts/proving/matrix.py [METHOD ...]

The table in peftctl/tables was made with one seed and one size. A yes there that fails here claims too much; a no that
works refuses too much.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from capabilities import FAMILIES, SIZES, YES, tried
from machine import machine, versions

from peftctl.methods import METHODS
from peftctl.methods.described import COLUMNS, row
from peftctl.quiet import quiet_libraries
from peftctl.tables import table

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
TRIALS: tuple[tuple[int, dict[str, int]], ...] = (
    (1, {"hidden_size": 128, "intermediate_size": 192, "vocab_size": 120}),
    (2, {"num_hidden_layers": 3, "intermediate_size": 256}),
)


def main() -> None:
    quiet_libraries()
    names = sys.argv[1:] or list(METHODS)
    began = time.time()
    trials = []
    for seed, sizes in TRIALS:
        found: dict[str, Any] = {}
        for name in names:
            found |= tried([name], seed=seed, **sizes)
            print(f"seed {seed}: {name}: {', '.join(row(found[name]))}", flush=True)
        trials.append(found)
    seen = table("capabilities")["methods"]
    differing = [each for found in trials for each in differences(found, seen)]
    result = {
        "machine": machine(),
        "versions": versions(),
        "minutes": (time.time() - began) / 60,
        "trials": [{"seed": seed, **SIZES, **sizes} for seed, sizes in TRIALS],
        "methods": len(names),
        "cells": sum(len(verdicts(found)) for found in trials),
        "differing": differing,
    }
    for line in differing:
        print(line)
    if not sys.argv[1:]:
        report(result, trials[0])
    sys.exit(bool(differing))


def verdicts(methods: dict[str, Any]) -> dict[tuple[str, str, str], str]:
    """Every cell by its place."""
    found = {}
    for name, able in methods.items():
        for part, said in able.items():
            found |= {(name, part, what): each for what, each in said.items()} if isinstance(said, dict) else {
                (name, part, ""): said
            }  # fmt: skip
    return found


def differences(found: dict[str, Any], seen: dict[str, Any]) -> list[str]:
    """Cells in which ``found`` says yes and the table no, or the other way round."""
    claimed = verdicts(seen)
    return [
        f"{' '.join(place).strip()}: the table says {claimed[place]!r}, this trial {said!r}"
        for place, said in verdicts(found).items()
        if (said == YES) != (claimed[place] == YES)
    ]


def report(result: dict[str, Any], found: dict[str, Any]) -> None:
    lines = [f"| {name} | {' | '.join(row(able))} |" for name, able in found.items()]
    differing = "".join(f"- {line}\n" for line in result["differing"]) or "None.\n"
    text = f"""\
# Every method on every family

`scripts/proofs matrix`. {result["machine"]}. {result["versions"]}.

{result["methods"]} methods on {len(FAMILIES)} families of tiny random models, {result["cells"]:,} cells in
{len(result["trials"])} trials whose seeds and sizes are not those that made the table of capabilities,
{result["minutes"]:.0f} minutes. In each cell the method is built, trained until the loss has fallen and
every tensor has had a gradient, saved, read back on the untouched base and compared, and generates.

| method | {" | ".join(COLUMNS)} |
|{"---|" * (len(COLUMNS) + 1)}
{chr(10).join(lines)}

Cells that differ from the table of capabilities, either way:

{differing}"""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "matrix.md").write_text(text, encoding="utf-8")
    (RESULTS / "matrix.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
