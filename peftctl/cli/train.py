"""Training."""

from __future__ import annotations

from typing import Annotated

import typer

from peftctl.cli.words import Json, Overrides, RecipePath
from peftctl.outcomes import outcomes


@outcomes
def train(
    recipe: RecipePath,
    output: Annotated[str | None, typer.Option(metavar="DIR", help="Run directory, instead of the recipe's.")] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Train what the recipe says and leave a checked adapter."""
    from peftctl import console
    from peftctl.recipe import load
    from peftctl.recipe.compose import read_text

    loaded = load(recipe, output, overrides or [])
    with console.watch(as_json=as_json) as listener:
        from peftctl import quiet
        from peftctl.events import Events
        from peftctl.train import job

        quiet.no_progress_bars()
        job.train(loaded, read_text(recipe), Events(listener))
