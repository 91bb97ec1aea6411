"""What verbs share: their arguments, and how a wrong word is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from peftctl.errors import PeftctlError, UsageError

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="The YAML recipe.")]
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


def ask(question: str, check: Callable[[str], Any], default: str | None = None) -> str:
    """An answer that ``check`` has nothing against; what it has is said, and the question asked again."""
    from peftctl import console

    while True:
        said = str(typer.prompt(question, default=default)).strip()
        try:
            check(said)
            return said
        except PeftctlError as error:
            console.show_error(error)


def known(flag: str, found: str, known: list[str]) -> None:
    """Raises UsageError where ``found`` is none of the words that a flag takes."""
    from peftctl.nearest import nearest

    if found not in known:
        near = nearest(found, known)
        meant = f"; did you mean {near}?" if near else ""
        raise UsageError(f"{flag}: no such value (found {found!r}); allowed: {', '.join(known)}{meant}")
