"""Training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from peftctl.cli.words import Json, Overrides
from peftctl.errors import UsageError, VerificationError
from peftctl.outcomes import outcomes


@outcomes
def train(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="The YAML recipe.")] = None,
    output: Annotated[str | None, typer.Option(metavar="DIR", help="Run directory, instead of the recipe's.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="auto|never|PATH",
            help="Go on from the newest checkpoint that the run directory has (auto, the default), never, or from the "
            "checkpoint or run at PATH.",
        ),
    ] = None,
    reproduce: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Instead of a recipe: train this run again, and say whether the bits agree."),
    ] = None,
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Train what the recipe says and leave a checked adapter.

    Stopped or killed, the same command goes on from the last checkpoint, and ends with the same bits.
    """
    from peftctl import console
    from peftctl.recipe import load
    from peftctl.recipe.compose import read_text

    if (recipe is None) == (reproduce is None):
        raise UsageError("RECIPE: a recipe to train is needed, or --reproduce RUN" + (", not both" if recipe else ""))
    if reproduce is not None:
        for flag, given in (("--resume", resume), ("--set", overrides)):
            if given:
                raise UsageError(f"{flag}: has no effect with --reproduce, which trains what the run says")
        _reproduce(reproduce, output, as_json=as_json)
        return
    assert recipe is not None
    loaded = load(recipe, output, overrides or [])
    with console.watch(as_json=as_json) as listener:
        from peftctl import quiet
        from peftctl.events import Events
        from peftctl.train import job

        quiet.no_progress_bars()
        job.train(loaded, read_text(recipe), Events(listener), "auto" if resume is None else resume)


def _reproduce(path: Path, output: str | None, *, as_json: bool) -> None:
    """Exits with the code of a failed verification where the bits are others."""
    from peftctl import console
    from peftctl.run import open_run

    run = open_run(path)
    with console.watch(as_json=as_json) as listener:
        from peftctl import quiet
        from peftctl.console import reproductions
        from peftctl.events import Events
        from peftctl.reproduce import reproduce

        quiet.no_progress_bars()
        found = reproduce(run, Path(output) if output else None, Events(listener))
    if as_json:
        console.say_json(found.as_dict())
    else:
        reproductions.show(found)
    if not found.same:
        sys.exit(VerificationError.exit_code)
