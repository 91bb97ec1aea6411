"""What methods there are, and what each can do."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from peftctl.cli.words import Json, known
from peftctl.outcomes import outcomes


@outcomes
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="METHOD", help="One method, with its formula and settings.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the fine-tuning methods, and what each was seen to work on with the pinned versions."""
    from peftctl import console
    from peftctl.methods import METHODS
    from peftctl.tables import table

    seen: dict[str, Any] = table("capabilities")["methods"]
    if name is not None:
        known("METHOD", name, list(METHODS))
        seen = {name: seen[name]}
    if as_json:
        console.say_json({"versions": {key: table("capabilities")[key] for key in ("peft", "transformers")}, **seen})
        return
    if name is not None:
        from peftctl.methods.described import described

        console.say(described(METHODS[name]))
    families = list(next(iter(seen.values()))["families"])
    rows = []
    for method, able in seen.items():
        cells = [*(able["families"][family] for family in families), *able["quantization"].values()]
        cells += [able["checkpointing"], able["merges"]]
        rows.append([method, METHODS[method].category, *("yes" if cell == "yes" else "no" for cell in cells)])
    console.table(["", "kind", *families, "4 bit", "8 bit", "checkpointing", "merges"], rows)
    if name is not None:
        for what, cell in _cells(seen[name]):
            if cell != "yes":
                console.say(f"{what}: {cell}")


def _cells(able: dict[str, Any]) -> list[tuple[str, str]]:
    found = [*able["families"].items(), *((f"{bits} bit", said) for bits, said in able["quantization"].items())]
    return [*found, ("checkpointing", able["checkpointing"]), ("merges", able["merges"])]
