"""A first recipe, short, that says what it leaves at its default and why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peftctl.atomic import write_text
from peftctl.data import files, readers
from peftctl.data.sources import choose_format, read_examples
from peftctl.errors import Place, UsageError
from peftctl.example import RowFault
from peftctl.methods import METHODS
from peftctl.recipe import check
from peftctl.recipe.resolve import DEFAULT_EPOCHS
from peftctl.recipe.schema import TrainSettings
from peftctl.tasks import TASKS

LOOKED_AT = 100
HELD_OUT = 0.05


@dataclass(frozen=True)
class Answers:
    """What a first recipe needs to know. ``model`` is a hub id, folder or file; ``data`` a JSONL file."""

    model: str
    data: Path
    task: str = "causal_lm"
    method: str = "lora"
    output: str = "runs/first"


def propose_format(data: Path, task: str) -> tuple[str, int]:
    """The format of the file's first rows, and how many of them were read as such (at most ``LOOKED_AT``).

    Raises DataError where none fits.
    """
    first = first_row(data)
    name = choose_format("auto", frozenset(first), TASKS[task], Place(str(data), 1)).name
    return name, len(read_examples(data, name, LOOKED_AT, task))


def write_recipe(path: Path, answers: Answers) -> str:
    """Write the recipe and return the format of its rows. What is written passes ``check``.

    Raises UsageError where something stands at ``path``, DataError where the rows are of no known format.
    """
    if path.exists():
        raise UsageError(f"{path}: exists already", "name another file, or remove this one")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path.parent}: no folder that can be written to")
    fmt, rows = propose_format(answers.data, answers.task)
    write_text(path, text(answers, fmt, rows, path.parent))
    try:
        check(path)
    except BaseException:
        path.unlink()
        raise
    return fmt


def text(answers: Answers, fmt: str, rows: int, folder: Path) -> str:
    """The recipe for a file in ``folder``, with comments."""
    method = METHODS[answers.method]
    train = TrainSettings()
    model = answers.model
    if Path(model).expanduser().exists() and not Path(model).is_absolute():
        model = _beside(Path(model), folder)
    settings = method.resolve(method.settings(name=answers.method)).model_dump(exclude_none=True)
    off: tuple[object, ...] = ((), {}, "default")  # what is not done unless a recipe asks for it
    said = ", ".join(
        f"{key} {_plain(value)}"
        for key, value in settings.items()
        if key != "name" and value is not False and value not in off
    )
    return f"""\
# What is left out keeps its default. `peftctl check` judges this file; docs/recipe.md describes every setting.
model: {_scalar(model)}

data:
  train: {{path: {_scalar(_beside(answers.data, folder))}, format: {fmt}}}
{_held_out(rows)}
# {method.name}'s defaults: {said or "its own choice of layers"}.
method: {answers.method}

train:
  # Passes over the rows. More can help with few rows, until eval's loss rises. Default: {DEFAULT_EPOCHS:g}.
  epochs: {DEFAULT_EPOCHS:g}
  # Rows an update learns from: it changes the result, while micro_batch_tokens changes memory alone.
  batch_size: {train.batch_size}
  # The peak; it warms up over {train.warmup_ratio:.0%} of the steps and follows a {train.schedule} to zero.
  learning_rate: {method.learning_rate:g}

# Relative to where peftctl is run. A finished run is never overwritten.
output: {_scalar(answers.output)}
"""


def _held_out(rows: int) -> str:
    """The lines on held-out rows: none can be spared of a single one."""
    if rows < 2:
        return "  # Name rows of their own as `eval:` to see what was learned: a single row cannot be split.\n"
    share = f"{HELD_OUT:.0%} of the file"
    return (
        f"  # Rows the model does not learn from, to see what it has learned: here {share}.\n"
        f"  eval: {{split: {HELD_OUT}}}\n"
    )


def first_row(data: Path) -> Mapping[str, Any]:
    """The first row of a file. Raises DataError where there is none, or it cannot be read."""
    with files.open_binary(str(data)) as file:
        for _, row in readers.read(str(data), file):
            if isinstance(row, RowFault):
                break
            return row
    read_examples(data, "auto", 1, "causal_lm")  # says what is wrong with the file, and where
    return {}


def _beside(path: Path, folder: Path) -> str:
    """``path`` as a recipe in ``folder`` names it."""
    relative = os.path.relpath(path.expanduser().absolute(), folder.absolute())
    return relative if relative.startswith(".") or os.sep in relative or path.suffix else f"./{relative}"


def _scalar(value: str) -> str:
    """A text as YAML, quoted where it needs to be."""
    dumped: str = yaml.safe_dump(value, allow_unicode=True, width=10_000, default_flow_style=True)
    return dumped.removesuffix("\n").removesuffix("\n...").strip()


def _plain(value: Any) -> str:
    return (
        ", ".join(map(str, value))
        if isinstance(value, list | tuple)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )
