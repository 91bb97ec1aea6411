"""The command line. Each verb opens what it needs inside itself: ``--help`` imports neither torch nor the rest."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from peftctl import __version__
from peftctl.cli import data, inspect, merge, methods, recipes, runs, train

app = typer.Typer(
    name="peftctl",
    help="Fine-tune a model from a YAML recipe.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

VERBS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "check": recipes.check,
    "schema": recipes.schema,
    "init": recipes.init,
    "data": data.data,
    "inspect": inspect.inspect,
    "methods": methods.methods,
    "cache": data.cache,
    "eval": runs.evaluate,
    "generate": runs.generate,
    "merge": merge.merge,
    "export": runs.export,
}
for name, verb in VERBS.items():
    app.command(name=name)(verb)


def main() -> None:
    """The console script."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by whoever started us
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for the rest of the process
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _terminated)
    app()


def _terminated(number: int, frame: object) -> None:
    """End as the signal would, but on the way out: what is being written aside is removed."""
    sys.exit(128 + number)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if show:
        from peftctl import console

        console.say(f"peftctl {__version__}")
