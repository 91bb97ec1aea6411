"""Looking at rows, and at what is kept of them."""

from __future__ import annotations

from typing import Annotated

import typer

from peftctl.cli.words import Json, Overrides, RecipePath, known
from peftctl.outcomes import outcomes


@outcomes
def data(
    recipe: RecipePath,
    overrides: Overrides = None,
    side: Annotated[str, typer.Option("--from", help="Whose rows to show: train or eval.")] = "train",
    row: Annotated[int, typer.Option(min=1, help="The first row to show.")] = 1,
    rows: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 3,
    plain: Annotated[
        bool, typer.Option("--plain", help="Mark what is learned with signs, not colours; so it is in a pipe.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show rows as the model will see them, what is learned of them, and what became of all rows.

    Reads and encodes what training would, with the same faults, and fetches no weights of a hub model.
    """
    from peftctl import console, quiet
    from peftctl.recipe import load
    from peftctl.recipe.resolve import resolve

    known("--from", side, ["train", "eval"])
    loaded = resolve(load(recipe, None, overrides or []))
    quiet.no_progress_bars()
    from peftctl.data.prepare import open_rows
    from peftctl.data.preview import preview

    def note(text: str) -> None:
        console.note(f"note: {text}")

    found = preview(open_rows(loaded, note, weights=False), note, side=side, start=row, count=rows)
    if as_json:
        console.say_json(found.as_dict())
    else:
        from peftctl.console.rows import show

        show(found, plain=plain)


@outcomes
def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove encoded rows and copies of remote files.")] = False,
    as_json: Json = False,
) -> None:
    """Show what the cache holds, or clear it. Converted models stay, since runs name them as their base."""
    from peftctl import console
    from peftctl.cache import cache_home
    from peftctl.data import cache as rows
    from peftctl.sizes import size

    freed = rows.clear() if clear else 0
    sizes = rows.sizes()
    if as_json:
        kinds = {name: {"entries": count, "bytes": taken} for name, (count, taken) in sizes.items()}
        console.say_json({"path": str(cache_home()), "freed_bytes": freed, **kinds})
        return
    console.say(f"{cache_home()}" + (f": {size(freed)} freed" if clear else ""))
    for name, (count, taken) in sizes.items():
        console.say(f"  {name:<8} {count:>6,} entr{'y' if count == 1 else 'ies'}  {size(taken)}")
