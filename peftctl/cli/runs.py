"""Using what a run has left."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from peftctl.cli.words import Base, Json, RunPath, known
from peftctl.errors import UsageError
from peftctl.outcomes import outcomes


@outcomes
def evaluate(
    run: RunPath,
    on: Annotated[
        str | None, typer.Option(help="What to measure: adapter, base or both. Default: both, where the base can be.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Held-out rows, instead of the recipe's.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first so many rows.")] = None,
    base: Base = None,
    as_json: Json = False,
) -> None:
    """Measure a run on held-out rows, beside its untrained base.

    With --on base the adapter's figures are those of the end of training, where the rows are the recipe's.
    """
    from peftctl import console

    sides = _sides("both" if on is None else on)
    loaded = _load(run, base)
    if loaded.collate.task.head:  # the base has none that was trained, so it has nothing to say
        if on in ("base", "both"):
            raise UsageError(
                f"--on: the base has no head for {loaded.collate.task.name} but the run's; allowed: adapter"
            )
        sides = ["adapter"]
        console.note(f"the base is not measured: it has no head for {loaded.collate.task.name} but the run's")
    measure = loaded.held_out(data, limit)
    measured = {}
    for side in sides:
        ready = measure.of_base() if side == "base" else measure
        with loaded.base() if side == "base" else nullcontext(loaded.model) as model:
            with loaded.fast.on(loaded.model):
                measured[side] = ready(model)
            measured[side] |= ready.written(model)
    if sides == ["base"] and data is None and limit is None and loaded.run.manifest["metrics"]:
        measured["adapter, when trained"] = loaded.run.manifest["metrics"]
    if as_json:
        console.say_json({"run": str(loaded.run.path), "rows": len(measure.rows), **measured})
        return
    console.say(f"{len(measure.rows)} held-out rows" + _dropped(measure.rows.dropped))
    headings, table = _measured_table(measured)
    console.table(headings, table)
    for metrics in measured.values():
        if classes := metrics.get("classes"):
            console.say()
            columns = list(next(iter(classes.values())))
            rows = [[label, *(console.figure(row[column]) for column in columns)] for label, row in classes.items()]
            console.table(["", *columns], rows)


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

    sides = _sides(on)
    if plain and system is not None:
        raise UsageError("--system: has no effect with --plain, which uses no chat template")
    for flag, given in (("--top-p", top_p), ("--seed", seed)):
        if given is not None and temperature == 0:
            raise UsageError(f"{flag}: has no effect at --temperature 0, which takes the likeliest token")
    asked = _prompt(prompt)
    loaded = _load(run, base)
    from peftctl.generate import Sampling
    from peftctl.generate import generate as write

    ids = _ids(loaded, asked, system, plain=plain)
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
            if not answers[side].strip():
                console.note("note: what was written is empty: the model ended it at once")
    if as_json:
        console.say_json(answers)


@outcomes
def export(
    run: RunPath,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to make.")],
    to: Annotated[
        str, typer.Option(help="The form: adapter, merged, gguf, gguf-lora, ollama, onnx or vllm. See docs/export.md.")
    ],
    type_: Annotated[
        str | None, typer.Option("--type", help="What is written, numbers or parts, where the form leaves a choice.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Load what was written in the program it is for, and compare.")
    ] = True,
    base: Base = None,
    push: Annotated[
        str | None,
        typer.Option(metavar="OWNER/REPO", help="Upload it to the hub, too, with the token of HF_TOKEN or the cache."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Where --push makes the repo, make it private.")] = False,
    as_json: Json = False,
) -> None:
    """Ship what a run left, checked in the program it is for before it is published."""
    from peftctl import console, quiet
    from peftctl.exporters import push as hub
    from peftctl.exporters.export import Asked
    from peftctl.exporters.export import export as publish
    from peftctl.run import open_run

    if private and push is None:
        raise UsageError("--private: has no effect without --push")
    opened = open_run(run)
    quiet.no_progress_bars()
    target = hub.target(push, private) if push is not None else None
    manifest = publish(opened, out, Asked(to, type_, base, verify), console.note)
    if not as_json:
        console.say(f"{out}: {to}, {_verified(manifest)}")
    pushed = hub.push(opened, out, manifest, target, console.note) if target else None
    if as_json:
        console.say_json(manifest | ({"push": pushed} if pushed else {}))
    elif pushed:
        console.say(f"{pushed['repo']}: {pushed['url']}")


def _verified(manifest: dict[str, Any]) -> str:
    """What a manifest says of whether it was verified, in whole and of its parts."""
    why = f" ({manifest['reason']})" if "reason" in manifest else ""
    parts = [
        f"; {name}: {part['verified']} ({part['reason']})"
        for name, part in manifest.items()
        if isinstance(part, dict) and part.get("verified") == "no"
    ]
    return f"verified: {manifest['verified']}{why}{''.join(parts)}"


def _ids(loaded: Any, asked: str, system: str | None, *, plain: bool) -> list[int]:
    """The ids of what is asked. Raises UsageError where the run's model cannot be asked so."""
    from peftctl.example import Turn

    loaded.check_writes()
    chats = loaded.collate.task.chats
    for flag, given in (("--system", system is not None), ("--plain", plain)):
        if given and not chats:
            raise UsageError(f"{flag}: has no effect on {loaded.collate.task.name}, which takes a text as it is")
    if chats and not plain and not loaded.tokenizer.chat_template:
        raise UsageError("the model has no chat template", "--plain continues the text itself")
    turns = [Turn("system", system or ""), Turn("user", asked)][system is None :]
    ids: list[int] = loaded.ids(asked if plain or not chats else turns)
    return ids


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
    from peftctl import quiet
    from peftctl.run import loaded, open_run

    opened = open_run(run)  # before the libraries, which take seconds to import
    quiet.no_progress_bars()
    return loaded(opened, base)


def _sides(on: str) -> list[str]:
    sides = {"adapter": ["adapter"], "base": ["base"], "both": ["base", "adapter"]}
    known("--on", on, list(sides))
    return sides[on]


def _dropped(dropped: Any) -> str:
    return f" (dropped: {', '.join(f'{count} {reason}' for reason, count in dropped.items())})" if dropped else ""


def _measured_table(measured: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A row for each side, and one for always giving the majority's answer where there are choices or classes."""
    from peftctl.console import figure

    # What is written is scored beside what is read, under names of its own.
    measured = {
        side: {**metrics, **{f"written {name}": value for name, value in metrics.get("written", {}).items()}}
        for side, metrics in measured.items()
    }
    first = next(iter(measured.values()))
    plain = [key for key, value in first.items() if isinstance(value, float | None)]
    by_choice = "likeliest" in first
    rows = [
        [side, *(figure(metrics[key]) for key in plain)]
        + ([f"{metrics['likeliest'][key]:.3f}" for key in ("accuracy", "macro_f1")] if by_choice else [])
        for side, metrics in measured.items()
    ]
    columns = [*plain, *(["accuracy", "macro_f1"] if by_choice else [])]
    if always := first.get("majority"):
        rows.insert(0, ["majority", *(f"{always[key]:.3f}" if key in always else "-" for key in columns)])
    return ["", *columns], rows
