"""What methods there are, and what each can do."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from peftctl.cli.words import Json, known
from peftctl.outcomes import outcomes


@outcomes
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="METHOD", help="One method or preset, with its formula and settings.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show the fine-tuning methods, and what each was seen to work on with the pinned versions."""
    from peftctl import console
    from peftctl.methods import METHODS
    from peftctl.methods.described import COLUMNS, described, refused, row
    from peftctl.methods.presets import PRESETS, spelled
    from peftctl.tables import table

    seen: dict[str, Any] = table("capabilities")["methods"]
    words = ""
    if name is not None:
        asked, (name, words) = name, spelled(name)
        known("METHOD", name, [*METHODS, *PRESETS])
        seen = {name: seen[name]}
    if as_json:
        console.say_json({"versions": {key: table("capabilities")[key] for key in ("peft", "transformers")}, **seen})
        return
    if name is not None:
        if words:
            console.say(f"{asked}: {words}\n")
        console.say(described(METHODS[name]))
    rows = [[method, METHODS[method].category, *row(able)] for method, able in seen.items()]
    console.table(["", "kind", *COLUMNS], rows)
    if name is not None:
        for what, why in refused(seen[name]):
            console.say(f"{what}: {why}")
    else:
        for preset in PRESETS:
            console.say(f"{preset}: {spelled(preset)[1]}")
