"""Where a run begins: anew, at one of its checkpoints, or not at all because it is finished."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from peftctl.errors import UsageError, VerificationError
from peftctl.recipe import load as load_recipe
from peftctl.recipe.dump import values
from peftctl.recipe.schema import Recipe
from peftctl.train import checkpoint, rundir

AUTO, NEVER = "auto", "never"
# What may be another when a run goes on: how long it is, when it is logged, measured and saved, and where.
FREE = {
    "train": ("epochs", "max_steps", "max_time", "log_every", "log_rows", "save_every", "keep_checkpoints"),
    "eval": ("every",),
}
LENGTH = ("train.epochs", "train.max_steps")
FREE_WHOLE = ("track", "output")
# A resolved recipe names every target: a mixture of experts has tens of thousands.
RESOLVED_BYTES = 50_000_000

Note = Callable[[str], None]


@dataclass(frozen=True)
class Beginning:
    """``anew``, ``at`` a checkpoint, or ``done``: the run is finished and there is nothing to do."""

    way: Literal["anew", "at", "done"]
    path: Path | None = None


def asked(recipe: Recipe) -> dict[str, Any]:
    """What a recipe says once its defaults are made, by dotted key: what a checkpoint is compared by."""
    return dict(_flat(values(recipe), ""))


def begin(run: Path, recipe: Recipe, how: str, note: Note) -> Beginning:
    """Where the run in ``run``, which is claimed, begins. ``how``: auto, never, or a checkpoint or another run.

    Raises UsageError where what is there is not this recipe's, VerificationError where no checkpoint is intact.
    """
    there = rundir.left(run)
    finished = rundir.MANIFEST in there
    if how not in (AUTO, NEVER):
        return _from(Path(how).expanduser().absolute(), run, recipe, there)
    if finished:
        manifest = json.loads((run / rundir.MANIFEST).read_text("utf-8"))
        if how == NEVER or not (said := manifest.get("asked")):
            raise rundir.taken(run, there)
        _same(recipe, said, rundir.taken(run, there).message)
        now = asked(recipe)
        if any(said.get(key) != now.get(key) for key in LENGTH):
            hint = f"to go on from its end for longer: --output another --resume {run}"
            raise UsageError(f"{rundir.taken(run, there).message}, of another length", hint)
        if manifest["metrics"] or not recipe.data.eval:
            return Beginning("done")
        if not checkpoint.all_of(run):
            note(
                "the run is finished but for its evaluation, and has no checkpoint to go on from: peftctl eval makes it"
            )
            return Beginning("done")
    found = _newest(run, note) if how == AUTO else None
    if found is None:
        rundir.move_unfinished(run, note)
        return Beginning("anew")
    _same(recipe, checkpoint.state_of(found)["asked"], f"output: {run} holds a run of another recipe")
    return Beginning("at", found)


def recipe_at(path: Path, now: Recipe) -> Recipe:
    """The resolved recipe of the checkpoint at ``path``, with what may be another as it is now."""
    recipe = load_recipe(path / checkpoint.RESOLVED, max_bytes=RESOLVED_BYTES)
    for section, names in FREE.items():
        said = getattr(now, section)
        recipe = recipe.with_settings(section, "recipe", **{name: getattr(said, name) for name in names})
    return replace(recipe, **{name: getattr(now, name) for name in FREE_WHOLE})


def set_aside(run: Path, at: Path) -> None:
    """Take out of the way what the run has left that comes after the checkpoint ``at``: later checkpoints, and what was
    published. Those that are damaged, or that another way leads past, are kept under another name."""
    rundir.unpublish(run)
    here = checkpoint.step_of(at) or 0
    for path in checkpoint.all_of(run):
        if (checkpoint.step_of(path) or 0) > here:
            path.rename(_free(path.with_name(f"past-{path.name}")))


def _free(path: Path) -> Path:
    """``path``, or the first name beside it, numbered, that nothing has."""
    tries = (path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 10_000)))
    return next(each for each in tries if not each.exists())


def _newest(run: Path, note: Note) -> Path | None:
    """The newest checkpoint that is intact, None where there is none at all. Raises VerificationError where all that
    there are are damaged."""
    damaged = []
    for path in checkpoint.all_of(run):
        try:
            checkpoint.verify(path)
        except VerificationError as error:
            damaged.append(error.message)
            note(f"skipped a checkpoint: {error.message}")
        else:
            return path
    if damaged:
        raise VerificationError(
            f"no checkpoint in {run / checkpoint.FOLDER} is intact: {'; '.join(damaged)}",
            f"--resume {NEVER} starts over",
        )
    return None


def _from(path: Path, run: Path, recipe: Recipe, there: list[str]) -> Beginning:
    """A checkpoint that is named, of this run or of another."""
    if not path.exists():
        raise UsageError(f"--resume: there is no {path}", f"allowed: {AUTO}, {NEVER}, a checkpoint or a run directory")
    if (path / checkpoint.FOLDER).is_dir():
        found = _newest(path, lambda _: None)
        path = found or path
    if checkpoint.step_of(path) is None:
        raise UsageError(f"--resume: {path} is neither a checkpoint nor a run that has one")
    checkpoint.verify(path)
    if path.parent != run / checkpoint.FOLDER and there:
        raise UsageError(
            f"output: {run} holds something already ({', '.join(there[:4])})",
            "to go on from another run's checkpoint, give --output a directory of its own",
        )
    if rundir.MANIFEST in there:
        raise rundir.taken(run, there)
    _same(recipe, checkpoint.state_of(path)["asked"], f"--resume: {path} is of another recipe")
    return Beginning("at", path)


def _same(recipe: Recipe, then: Mapping[str, Any], problem: str) -> None:
    """Raises UsageError with every setting that is not what it was."""
    now = asked(recipe)
    free = {f"{section}.{name}" for section, names in FREE.items() for name in names}
    lines = [
        f"  {key}: {_said(then, key)} then, {_said(now, key)} now"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key) and key not in free and key.split(".")[0] not in FREE_WHOLE
    ]
    if lines:
        shown = lines[:20] + ([f"  and {len(lines) - 20} more"] if len(lines) > 20 else [])
        raise UsageError(
            "\n".join([problem, *shown]),
            f"as it was it goes on; --resume {NEVER} starts over, and so does another --output",
        )


def _said(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key], ensure_ascii=False) if key in settings else "not set"


def _flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and any(isinstance(each, dict) for each in value):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{path}[{index}]")
    else:
        yield path, value
