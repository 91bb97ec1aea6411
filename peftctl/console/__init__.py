"""What a person sees, and the only module that knows how: Rich on a terminal, plain lines elsewhere, or JSON."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from peftctl.crashlog import redact
from peftctl.errors import Fault, PeftctlError, Place, RecipeError, StoppedError
from peftctl.events import Event, Listener

LONGEST_LINE = 200
# Events for programs, not for people.
SILENT = ("rows",)
# What may have become of rows, and is said only where it has.
RARE = {"filtered": "filtered out", "held_out": "held out", "truncated": "cut short", "split": "cut into several"}


class _Console(Console):
    """Rich's console, but that a reader who goes away (``| head``) silences it and ends nothing.

    Rich would end the process: a training run of hours, for want of somebody to watch it.
    """

    def on_broken_pipe(self) -> None:
        silence()
        self.quiet = True


def silence() -> None:
    """Let what is still written to standard output go nowhere: its reader is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _errors() -> Console:
    return _Console(stderr=True, highlight=False, soft_wrap=True)


def _results() -> Console:
    return _Console(highlight=False, soft_wrap=True)


def show_error(error: PeftctlError) -> None:
    """The message and the hint on standard error, ``error:`` and ``hint:`` coloured on a terminal."""
    console = _errors()
    if isinstance(error, RecipeError):
        show_faults(error.faults)
        return
    if not isinstance(error, StoppedError):  # it is what was asked for
        console.print("[bold red]error:[/]", end=" ")
    console.print(redact(error.message), markup=False)
    if error.hint:
        console.print("[bold cyan]hint:[/]", end=" ")
        console.print(redact(error.hint), markup=False)


def show_error_json(error: PeftctlError) -> None:
    """The error as one JSON object on standard output: what a program that asked for JSON reads."""
    faults = [fault.as_dict() for fault in error.faults] if isinstance(error, RecipeError) else []
    said = {"message": error.message, "hint": error.hint, "exit_code": error.exit_code, "faults": faults}
    say_json({"event": "error", "kind": type(error).__name__, **said})


def show_faults(faults: Sequence[Fault]) -> None:
    """Each fault on a line of its own, and under it the line of the recipe with a caret, all on standard error."""
    console = _errors()
    for fault in faults:
        place = visible(redact(str(fault.place)))
        said = visible(str(fault).removeprefix(f"{fault.place}: "))
        console.print(Text(place, "bold"), Text(": "), Text("error: ", "bold red"), redact(said), sep="", markup=False)
        if source := _source_line(fault.place):
            number = f"{fault.place.line:>5} | "
            console.print(number + source, markup=False)
            if fault.place.column:
                spaces = " " * (len(number) - 2) + "| " + " " * (fault.place.column - 1)
                console.print(spaces, Text("^", "bold red"), sep="", markup=False)


def _source_line(place: Place) -> str:
    """The line of the file at ``place``, or "" where there is none to show."""
    path = Path(place.file)
    if not place.line or not path.is_file():
        return ""
    lines = path.read_bytes().decode("utf-8-sig", "replace").splitlines()
    line = visible(redact(lines[place.line - 1])) if place.line <= len(lines) else ""
    return line if len(line) <= LONGEST_LINE or place.column > LONGEST_LINE else f"{line[:LONGEST_LINE]} ..."


def visible(text: str) -> str:
    """``text`` with control characters as signs: a recipe's must not move the cursor of whoever reads about it."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)


def note(text: str) -> None:
    """A line on standard error, so that standard output holds results alone."""
    _errors().print(text, markup=False)


def say(text: str = "") -> None:
    """A line of result on standard output."""
    _results().print(text, markup=False)


def piece(text: str) -> None:
    """Part of a line of result, at once: generated text as it comes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def say_json(value: Any, indent: int | None = None) -> None:
    """One JSON value on standard output, on one line unless ``indent`` is given; secrets are taken out."""
    sys.stdout.write(redact(json.dumps(value, ensure_ascii=False, allow_nan=False, default=str, indent=indent)) + "\n")
    sys.stdout.flush()


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table: the first column text, the others numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        made.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        made.add_row(*row)
    _Console(highlight=False, width=None if sys.stdout.isatty() else 160).print(made)


@contextmanager
def watch(*, as_json: bool) -> Iterator[Listener]:
    """A listener for a training run's events, in the form that the output asks for."""
    if as_json:
        yield _heard(say_json)
    elif sys.stdout.isatty():
        with _live() as listener:
            yield listener
    else:
        console = _results()
        yield lambda event: _print_lines(console, event)


def _heard(listener: Listener) -> Listener:
    """A listener that goes on where the reader of its lines has gone away."""

    def listen(event: Event) -> None:
        try:
            listener(event)
        except BrokenPipeError:
            silence()

    return listen


@contextmanager
def _live() -> Iterator[Listener]:
    """Lines as they come, and below them one line that moves: step, loss, rate, speed, memory, time left."""
    console = _Console(highlight=False)
    progress = Progress(
        TextColumn("[bold]{task.completed}/{task.total}[/]"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
        console=console,
    )
    with Live(progress, console=console, refresh_per_second=4, transient=False):
        task = None

        def listen(event: Event) -> None:
            nonlocal task
            if event["event"] != "step":
                _print_lines(console, event)
                return
            if task is None:
                task = progress.add_task("train", total=event["steps"], said="")
            progress.update(task, completed=event["step"], said=_step(event))

        yield listen


def _print_lines(console: Console, event: Event) -> None:
    for line in lines(event):
        console.print(redact(line), markup=False)


def lines(event: Event) -> list[str]:
    """An event as the plain lines a log would keep."""
    kind = event["event"]
    if kind in SILENT:
        return []
    if kind == "stage":
        return [f"{event['name']:<8} {event['detail']}"]
    if kind in LINES:
        return LINES[kind](event)
    if kind == "step":
        left = (event["steps"] - event["step"]) * event["seconds_per_step"]
        return [f"step {event['step']:>5}/{event['steps']}  {_step(event)}  {clock(left)} left"]
    if kind == "eval":
        return [f"eval     step {event['step']}: " + "  ".join(figures(event))]
    if kind in ("saved", "resumed"):
        return [f"{kind:<8} step {event['step']}: {event['path']}"]
    if kind == "skipped":
        return [f"warning: step {event['step']} made no update: {event['reason']}"]
    if kind == "warning":
        return [f"note: {event['message']}"]
    return [f"done     {event['path']} in {clock(event['seconds'])}"]


def _data(event: Event) -> list[str]:
    """What became of the rows of one side."""
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in event["dropped"].items())
    kept = f"{event['kept']:,} of {event['read']:,} rows" + (f" (dropped: {dropped})" if dropped else "")
    kept += "".join(f", {event[key]:,} {said}" for key, said in RARE.items() if event.get(key))
    kept += f", {event['rows']:,} rows of them" if event.get("rows", event["kept"]) != event["kept"] else ""
    kept += f", {event['rows_an_epoch']:,} an epoch" if event.get("rows_an_epoch") else ""
    learned = f"{event['tokens']:,} tokens, {event['supervised_tokens']:,} of them learned"
    end = f" ({', '.join(event['formats'])})" if event.get("formats") else ""
    end += " (from the cache)" if event.get("cached") else ""
    return [f"         {event['source']}: {kept}, {learned}, longest {event['longest']:,}{end}"]


def _model(event: Event) -> list[str]:
    """Sizes, and where the method goes: a line each for its targets and what it trains or adapts beside them."""
    from peftctl.model.targets import summary  # it brings every method, which most verbs need not wait for

    share = 100 * event["trainable"] / event["parameters"]
    percent = f"{share:.3g}" if share >= 10 else f"{share:.2g}"
    said = [
        f"         {event['parameters'] / 1e6:,.1f}M parameters, {event['trainable'] / 1e6:,.2f}M trained "
        f"({percent} %), {event['dtype']} on {event['device']}"
    ]
    shaped = [f"{name} {shape}" for name, shape in event["beside"].items()]
    whole = event["trainable"] == event["parameters"]
    for label, names in (("targets", event["targets"]), ("beside" if event["targets"] else "trained", shaped)):
        if names and not whole:
            placed = ", ".join(f"{name} x{count}" for name, count in summary(names).items())
            said.append(f"         {label}: {placed}")
    return said


def _fast(event: Event) -> list[str]:
    """What is packed and replaced, in a line; and why not, where the recipe wanted it."""
    said = ["packed rows" if event["packed"] else "padded rows"]
    if event["not_packed"]:
        said[0] += f" (packing is not exact here: {event['not_packed']})"
    said += ["loss from hidden states"] if event["loss"] else []
    said += [f"{kind} x{count}" for kind, count in event["replaced"].items()]
    said += ["compiled in between"] if event["compiled"] else []
    said += [f"left as they are: {', '.join(event['left'])}"] if event["left"] else []
    return [f"         fast: {', '.join(said)}"]


LINES: Mapping[str, Callable[[Event], list[str]]] = {"data": _data, "model": _model, "fast": _fast}


def figures(metrics: Mapping[str, Any]) -> list[str]:
    """Metrics as words: plain numbers, and accuracy and macro F1 of the likeliest choices and of the majority."""
    said = [f"{key} {figure(value)}" for key, value in metrics.items() if isinstance(value, float | None)]
    for key, value in metrics.items():
        if isinstance(value, Mapping) and "accuracy" in value:
            f1 = f", macro F1 {value['macro_f1']:.3f}" if "macro_f1" in value else ""
            said.append(f"{key}: accuracy {value['accuracy']:.3f}{f1}")
    if written := metrics.get("written"):
        said.append("written: " + ", ".join(f"{key} {figure(value)}" for key, value in written.items()))
    return said


def figure(value: float | None) -> str:
    """A number for people; None is one that was not finite."""
    return "not finite" if value is None else f"{value:.4g}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _step(event: Event) -> str:
    loss = "not finite" if event["loss"] is None else f"{event['loss']:.4f}"
    return (
        f"loss {loss}  lr {event['learning_rate']:.2e}  {event['tokens_per_s']:,.0f} tok/s  "
        f"{event['peak_memory_bytes'] / 1e9:.1f} GB"
    )
