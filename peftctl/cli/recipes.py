"""Judging, describing and writing recipes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftctl.cli.words import Json, Overrides, ask, known
from peftctl.errors import UsageError
from peftctl.outcomes import outcomes

if TYPE_CHECKING:
    from peftctl.recipe.schema import Recipe


@outcomes
def check(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="The YAML recipes.")],
    overrides: Overrides = None,
    model: Annotated[
        bool,
        typer.Option(
            "--model",
            help="Build the model without its weights too, and try whether the method goes in: layers, targets and "
            "modules by name, and methods that no table has seen on it. Takes seconds.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Name the faults of a recipe's text, with their lines and what was likely meant: settings and their values, what
    does not go together, and models, runs and adapters that are not there. Loads neither model nor data; what those
    hold is judged by --model, data and train."""
    from peftctl import console
    from peftctl.errors import RecipeError
    from peftctl.recipe import check as judge

    faults = []
    for recipe in recipes:
        try:
            judged = judge(recipe, overrides or [])
            if model:
                _try(judged, recipe, overrides or [])
            if not as_json:
                console.say(f"{recipe}: ok")
        except RecipeError as error:
            faults += error.faults
            if not as_json:
                console.show_faults(error.faults)
    if as_json:
        console.say_json([fault.as_dict() for fault in faults])
    if faults:
        sys.exit(RecipeError.exit_code)


def _try(judged: Recipe, path: Path, overrides: list[str]) -> None:
    """Raises RecipeError where the recipe does not go with its model."""
    from peftctl import console, quiet
    from peftctl.model.trial import trial
    from peftctl.recipe.check import placed

    quiet.no_progress_bars()
    try:
        trial(judged, console.note)
    except UsageError as error:
        raise placed(error, path, overrides) from error


@outcomes
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from peftctl import console
    from peftctl.recipe.json_schema import json_schema

    console.say_json(json_schema(), indent=2)


@outcomes
def init(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The file to write.")] = Path("recipe.yaml"),
    model: Annotated[str | None, typer.Option(help="Hub id, folder or .gguf file.")] = None,
    data: Annotated[Path | None, typer.Option(help="File of rows to learn from.")] = None,
    task: Annotated[str | None, typer.Option(help="What the model is trained to do.")] = None,
    method: Annotated[str | None, typer.Option(help="The fine-tuning method.")] = None,
    output: Annotated[str | None, typer.Option(metavar="DIR", help="The run directory.")] = None,
    as_json: Json = False,
) -> None:
    """Write a short recipe whose comments say what is left at its default and why."""
    from peftctl import console, starter
    from peftctl.methods import METHODS
    from peftctl.tasks import TASKS

    if recipe.exists():
        raise UsageError(f"{recipe}: exists already", "name another file, or remove this one")
    missing = [name for name, given in (("--model", model), ("--data", data)) if not given]
    if missing and not sys.stdin.isatty():
        raise UsageError(f"{', '.join(missing)}: must be given where there is nobody to ask")
    if output == "":
        raise UsageError("--output: is empty; allowed: the run directory")
    model = model or ask("Base model (hub id, folder or .gguf file)", lambda said: None)
    data = data or Path(ask("Rows to learn from (a file)", lambda said: starter.first_row(Path(said))))
    first = starter.Answers(str(model), data)
    if missing:
        kinds, ways = list(TASKS), list(METHODS)
        task = task or ask(f"Task ({', '.join(kinds)})", lambda said: known("task", said, kinds), first.task)
        method = method or ask(f"Method ({', '.join(ways)})", lambda said: known("method", said, ways), first.method)
        output = output or ask("Run directory", lambda said: None, f"runs/{recipe.stem}")
    task, method = task or first.task, method or first.method
    known("--task", task, list(TASKS))
    known("--method", method, list(METHODS))
    output = output or f"runs/{recipe.stem}"
    fmt = starter.write_recipe(recipe, starter.Answers(str(model), data, task, method, output))
    if as_json:
        console.say_json({"recipe": str(recipe), "format": fmt})
        return
    console.say(f"{recipe}: written; {data} holds {fmt} rows")
    console.say(f"next: peftctl train {recipe}")
