"""The verbs. Each opens what it needs inside itself: ``--help`` imports neither torch nor the rest."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from peftctl import __version__
from peftctl.errors import PeftctlError, UsageError
from peftctl.outcomes import outcomes

app = typer.Typer(
    name="peftctl",
    help="Fine-tune a model from a YAML recipe.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting: train.epochs=1. May be given again."),
]
Base = Annotated[
    Path | None,
    typer.Option(help="Where the base model is now: a folder or .gguf file. Its weights must be those of the run."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def main() -> None:
    """The console script."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the rest of the process
    app()


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        from peftctl import console

        console.say(f"peftctl {__version__}")


@app.command()
@outcomes
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The YAML recipe.")],
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


@app.command()
@outcomes
def check(
    recipes: Annotated[list[Path], typer.Argument(metavar="RECIPE...", help="The YAML recipes.")],
    overrides: Overrides = None,
    as_json: Json = False,
) -> None:
    """Name every fault of a recipe, with its line and what was likely meant. Loads neither model nor data."""
    from peftctl import console
    from peftctl.errors import RecipeError
    from peftctl.recipe import check as judge

    faults = []
    for recipe in recipes:
        try:
            judge(recipe, overrides or [])
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


@app.command()
@outcomes
def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from peftctl import console
    from peftctl.recipe.json_schema import json_schema

    console.say_json(json_schema(), indent=2)


@app.command()
@outcomes
def init(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The file to write.")] = Path("recipe.yaml"),
    model: Annotated[str | None, typer.Option(help="Hub id, folder or .gguf file.")] = None,
    data: Annotated[Path | None, typer.Option(help="JSONL file of rows to learn from.")] = None,
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
    model = model or _ask("Base model (hub id, folder or .gguf file)", lambda said: None)
    data = data or Path(_ask("Rows to learn from (a JSONL file)", lambda said: starter.first_row(Path(said))))
    first = starter.Answers(str(model), data)
    if missing:
        kinds, ways = list(TASKS), list(METHODS)
        task = task or _ask(f"Task ({', '.join(kinds)})", lambda said: _known("task", said, kinds), first.task)
        method = method or _ask(f"Method ({', '.join(ways)})", lambda said: _known("method", said, ways), first.method)
        output = output or _ask("Run directory", lambda said: None, f"runs/{recipe.stem}")
    task, method = task or first.task, method or first.method
    _known("--task", task, list(TASKS))
    _known("--method", method, list(METHODS))
    output = output or f"runs/{recipe.stem}"
    fmt = starter.write_recipe(recipe, starter.Answers(str(model), data, task, method, output))
    if as_json:
        console.say_json({"recipe": str(recipe), "format": fmt})
        return
    console.say(f"{recipe}: written; {data} holds {fmt} rows")
    console.say(f"next: peftctl train {recipe}")


@app.command(name="eval")
@outcomes
def evaluate(
    run: RunPath,
    on: Annotated[str, typer.Option(help="What to measure: adapter, base or both.")] = "both",
    data: Annotated[Path | None, typer.Option(help="Held-out rows, instead of the recipe's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first so many rows.")] = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Measure a run on held-out rows, beside its untrained base.

    With --on base the adapter's figures are those of the end of training, where the rows are the recipe's.
    """
    from peftctl import console

    sides = _sides(on)
    loaded = _load(run, base)
    measure = loaded.held_out(data, limit)
    measured = {}
    with loaded.fast.on(loaded.model):
        for side in sides:
            with loaded.base() if side == "base" else nullcontext(loaded.model) as model:
                measured[side] = measure(model)
    if sides == ["base"] and data is None and limit is None and loaded.run.manifest["metrics"]:
        measured["adapter, when trained"] = loaded.run.manifest["metrics"]
    if as_json:
        console.say_json({"run": str(loaded.run.path), "rows": len(measure.rows), **measured})
        return
    console.say(f"{len(measure.rows)} held-out rows" + _dropped(measure.rows.dropped))
    headings, table = _measured_table(measured)
    console.table(headings, table)


@app.command()
@outcomes
def generate(
    run: RunPath,
    prompt: Annotated[str | None, typer.Argument(help="What to answer; standard input where absent.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message before it.")] = None,
    plain: Annotated[bool, typer.Option("--plain", help="Continue the text itself: no chat template.")] = False,
    on: Annotated[str, typer.Option(help="Who answers: adapter, base or both.")] = "adapter",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens to write.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.0,
    top_p: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Draw from the likeliest tokens of this mass. Default: all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Fixes what is drawn. Default: 0.")] = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Let a run answer, as it writes."""
    from peftctl import console
    from peftctl.example import Turn

    sides = _sides(on)
    if plain and system is not None:
        raise UsageError("--system: has no effect with --plain, which uses no chat template")
    for flag, given in (("--top-p", top_p), ("--seed", seed)):
        if given is not None and temperature == 0:
            raise UsageError(f"{flag}: has no effect at --temperature 0, which takes the likeliest token")
    asked = _prompt(prompt)
    loaded = _load(run, base)
    from peftctl.generate import Sampling, encode_prompt
    from peftctl.generate import generate as write

    if not plain and not loaded.tokenizer.chat_template:
        raise UsageError("the model has no chat template", "--plain continues the text itself")
    turns = [Turn("system", system or ""), Turn("user", asked)][system is None :]
    ids = encode_prompt(asked if plain else turns, loaded.tokenizer)
    if (room := loaded.room(ids)) < max_new_tokens:
        console.note(f"note: at most {room} tokens fit behind this prompt")
    sampling = Sampling(min(max_new_tokens, room), temperature, 1.0 if top_p is None else top_p, seed or 0)
    answers = {}
    for side in sides:
        heard = None if as_json else console.piece
        if len(sides) > 1 and not as_json:
            console.piece(f"{side}: ")
        with loaded.base() if side == "base" else nullcontext(loaded.model) as model:
            answers[side] = write(model, loaded.tokenizer, ids, sampling, heard)
        if not as_json:
            console.piece("\n")
    if as_json:
        console.say_json(answers)


@app.command()
@outcomes
def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    to: Annotated[str, typer.Option(help="The form it is to take.")],
    as_json: Json = False,
) -> None:
    """Ship what a run left, checked."""
    from peftctl import console
    from peftctl.exporters.export import export as publish
    from peftctl.run import open_run

    manifest = publish(open_run(run), out, to)
    if as_json:
        console.say_json(manifest)
    else:
        console.say(f"{out}: {to}, verified: {manifest['verified']}")


def _ask(question: str, check: Callable[[str], Any], default: str | None = None) -> str:
    """An answer that ``check`` has nothing against; what it has is said, and the question asked again."""
    from peftctl import console

    while True:
        said = str(typer.prompt(question, default=default)).strip()
        try:
            check(said)
            return said
        except PeftctlError as error:
            console.show_error(error)


def _prompt(given: str | None) -> str:
    """The prompt given, or standard input. Raises UsageError where there is none, or it is no text."""
    asked = sys.stdin.buffer.read().decode("utf-8", "surrogateescape") if given is None else given
    if not asked:
        raise UsageError("PROMPT: nothing to answer")
    try:
        asked.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"PROMPT: not UTF-8 text at character {error.start + 1}") from None
    return asked


def _load(run: Path, base: Path | None) -> Any:
    from peftctl import load, quiet

    quiet.no_progress_bars()
    return load(run, base)


def _sides(on: str) -> list[str]:
    sides = {"adapter": ["adapter"], "base": ["base"], "both": ["base", "adapter"]}
    _known("--on", on, list(sides))
    return sides[on]


def _known(flag: str, found: str, known: list[str]) -> None:
    """Raises UsageError where ``found`` is none of the words that a flag takes."""
    from peftctl.nearest import nearest

    if found not in known:
        near = nearest(found, known)
        meant = f"; did you mean {near}?" if near else ""
        raise UsageError(f"{flag}: no such value (found {found!r}); allowed: {', '.join(known)}{meant}")


def _dropped(dropped: Any) -> str:
    return f" (dropped: {', '.join(f'{count} {reason}' for reason, count in dropped.items())})" if dropped else ""


def _measured_table(measured: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row for each side, and one for always giving the majority's answer where there are choices."""
    from peftctl.console import figure

    first = next(iter(measured.values()))
    plain = [key for key, value in first.items() if isinstance(value, float | None)]
    by_choice = "likeliest" in first
    rows = [
        [side, *(figure(metrics[key]) for key in plain)]
        + ([f"{metrics['likeliest'][key]:.3f}" for key in ("accuracy", "macro_f1")] if by_choice else [])
        for side, metrics in measured.items()
    ]
    if by_choice:
        majority = [f"{first['majority'][key]:.3f}" for key in ("accuracy", "macro_f1")]
        rows.insert(0, ["majority", *("-" for _ in plain), *majority])
    return ["", *plain, *(["accuracy", "macro_f1"] if by_choice else [])], rows


if __name__ == "__main__":
    main()
