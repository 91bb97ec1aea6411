"""Looking at a model, an adapter, a run or a checkpoint, before anything is done with it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from peftctl.cli.words import Json
from peftctl.errors import UsageError, VerificationError
from peftctl.outcomes import outcomes


@outcomes
def inspect(
    name: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="A hub id, model folder, config.json, .gguf file, adapter folder, run directory or checkpoint.",
        ),
    ],
    tree: Annotated[bool, typer.Option("--tree", help="Of a model: every module, alike blocks once.")] = False,
    match: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Of a model: what this entry of `targets` matches, and just misses."),
    ] = None,
    all_methods: Annotated[
        bool,
        typer.Option("--all-methods", help="Of a model: count what PEFT itself must count too, which takes a minute."),
    ] = False,
    base: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of an adapter: whether it fits the model in this folder.")
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Of a hub model: the branch, tag or commit. Default: main.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Of a run: the rows that this optimizer step learned from, counted from 1.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what can be trained in a model and what that takes, or what an adapter, run or checkpoint holds.

    Of a model the config is enough: no weights are loaded, and a hub model's are not fetched.
    """
    from peftctl.inspection.apart import Apart, plausible

    with ExitStack() as stack:
        # A model takes a process that imports for two seconds: it begins now.
        apart = stack.enter_context(Apart()) if plausible(name) else None
        from peftctl import console
        from peftctl.inspection.what import MODELS, decide

        if match and len(match) > 1:
            raise UsageError(f"--match: given {len(match)} times ({', '.join(match)}); allowed: once")
        what = decide(name)
        flags = {
            "--tree": tree,
            "--match": bool(match),
            "--all-methods": all_methods,
            "--base": base is not None,
            "--revision": revision is not None,
            "--step": step is not None,
        }
        _check(name, what.kind, [flag for flag, given in flags.items() if given])
        if what.kind not in MODELS:
            _others(what.kind, what.path, base, step, as_json=as_json)
            return
        from peftctl.console import models
        from peftctl.inspection.model import Asked, model_facts

        asked = Asked(tree, match[0] if match else None, all_methods, revision)
        facts = model_facts(what, asked, apart or stack.enter_context(Apart()), console.note)
        if as_json:
            console.say_json(facts.as_dict())
        else:
            models.show(facts)


def _check(name: str, kind: str, given: list[str]) -> None:
    """Raises UsageError for a flag that says nothing about what ``name`` is."""
    from peftctl.inspection.what import MODELS

    able = {"hub": ["--revision"], "adapter": ["--base"], "run": ["--step"]}.get(kind, [])
    able += ["--tree", "--match", "--all-methods"] if kind in MODELS else []
    words = {**dict.fromkeys(MODELS, "a model on this machine"), "hub": "a hub model", "adapter": "an adapter"}
    words["own"] = "what peftctl saved without PEFT"
    for flag in given:
        if flag not in able:
            raise UsageError(f"{flag}: has no effect on {words.get(kind, f'a {kind}')} (found {name})")


def _others(kind: str, path: Path, base: Path | None, step: int | None, *, as_json: bool) -> None:
    """An adapter, a run or a checkpoint. Exits with the code of what is not as it should be, once that is shown."""
    from peftctl import console
    from peftctl.console import adapters
    from peftctl.inspection.adapter import AdapterFacts, adapter_facts
    from peftctl.inspection.checkpoints import CheckpointFacts, checkpoint_facts
    from peftctl.inspection.own import OwnFacts, own_facts
    from peftctl.inspection.runs import RunFacts, run_facts
    from peftctl.inspection.steps import StepFacts, step_facts

    looks: dict[str, Callable[[], AdapterFacts | OwnFacts | RunFacts | CheckpointFacts | StepFacts]] = {
        "adapter": lambda: adapter_facts(path, base),
        "own": lambda: own_facts(path),
        "run": lambda: run_facts(path) if step is None else step_facts(path, step, console.note),
        "checkpoint": lambda: checkpoint_facts(path),
    }
    facts = looks[kind]()
    if as_json:
        console.say_json(facts.as_dict())
    else:
        adapters.show(facts)
    if facts.wrong:
        sys.exit(VerificationError.exit_code)
