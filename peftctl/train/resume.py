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
from peftctl.recipe.origin import is_local_model
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
OTHERWISE = f"the recipe as it was goes on; `--resume {NEVER}` starts over, and so does another --output"
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

    Raises UsageError where what is there is not this recipe's, VerificationError where no checkpoint is intact, or a
    finished run is not what it was.
    """
    there = rundir.left(run)
    if rundir.MANIFEST in there:
        return _finished(run, recipe, how, there, note)
    if how == NEVER:
        rundir.move_unfinished(run, note)
        return Beginning("anew")
    own = checkpoint.all_of(run)
    if how != AUTO:
        inside = bool(how) and Path(how).expanduser().absolute().is_relative_to(run)
        if inside or not own:
            path = _named(how)
            _same(recipe, path, f"--resume: {path} is of another recipe")
            if not own:
                rundir.move_unfinished(run, note)
            return Beginning("at", path)
        note(f"{run} has checkpoints of its own by now, and goes on from them")
    if not own:
        if rundir.has_saved(run):
            raise VerificationError(
                f"the checkpoints of {run} are gone: its log tells of some", f"`--resume {NEVER}` starts over"
            )
        rundir.move_unfinished(run, note)
        return Beginning("anew")
    found = _newest(run, note)
    _same(recipe, found, f"output: {run} holds a run of another recipe")
    return Beginning("at", found)


def _finished(run: Path, recipe: Recipe, how: str, there: list[str], note: Note) -> Beginning:
    """What a finished run is still to do: nothing, or the evaluation that it was stopped in."""
    try:
        manifest = json.loads((run / rundir.MANIFEST).read_text("utf-8"))
        said = manifest["asked"] if manifest["kind"] == "run" else {}
    except (ValueError, KeyError, TypeError):
        said = {}
    if how == NEVER or not said:
        raise rundir.taken(run, there)
    now = asked(recipe)
    _judge(now, said, frozenset(), rundir.taken(run, there).message, rundir.taken(run, there).hint)
    if any(said.get(key) != now.get(key) for key in LENGTH):
        raise UsageError(
            f"{rundir.taken(run, there).message}, of another length",
            f"in a directory of its own, `--output another --resume {run}`, training goes on from its end",
        )
    own = checkpoint.all_of(run)
    try:
        rundir.check_published(run, manifest)
    except VerificationError as error:
        again = f"without {run / rundir.MANIFEST} the same command publishes again, from {own[0].name}" if own else ""
        raise VerificationError(error.message, again) from None
    if manifest.get("metrics") or not recipe.data.eval:
        return Beginning("done")
    if not own:
        note("the run is finished but for its evaluation, which peftctl eval makes: there is no checkpoint left")
        return Beginning("done")
    return Beginning("at", _newest(run, note))


def recipe_at(path: Path, now: Recipe) -> Recipe:
    """The resolved recipe of the checkpoint at ``path``, with what may be another, or elsewhere, as it is now."""
    recipe = load_recipe(path / checkpoint.RESOLVED, max_bytes=RESOLVED_BYTES)
    recipe = replace(recipe, origins=checkpoint.state_of(path)["origins"])
    for section, names in FREE.items():
        said = getattr(now, section)
        recipe = recipe.with_settings(section, "recipe", **{name: getattr(said, name) for name in names})
    train = tuple(
        old.model_copy(update={"path": new.path}) if old.sha256 else old
        for old, new in zip(recipe.data.train, now.data.train, strict=True)
    )
    held_out = recipe.data.eval
    if held_out and held_out.sha256 and now.data.eval:
        held_out = held_out.model_copy(update={"path": now.data.eval.path})
    data = recipe.data.model_copy(update={"train": train, "eval": held_out})
    model, name = recipe.model, now.model.name
    if not model.revision:  # a model of this machine, by a path that may start where the recipe is
        here = now.path(name)
        model = model.model_copy(update={"name": str(here) if is_local_model(name, here) else name})
    return replace(recipe, data=data, model=model, **{name: getattr(now, name) for name in FREE_WHOLE})


def set_aside(run: Path, at: Path, note: Note) -> None:
    """Take out of the way what the run has left that comes after the checkpoint ``at``: later checkpoints, and what was
    published. Those that are damaged, or that another way leads past, are kept under another name."""
    rundir.unpublish(run)
    here = checkpoint.step_of(at) or 0
    for path in checkpoint.all_of(run):
        if (checkpoint.step_of(path) or 0) > here:
            kept = path.rename(_free(path.with_name(f"past-{path.name}")))
            note(f"{path.name}, from which the run does not go on, is now {kept}")


def _free(path: Path) -> Path:
    """``path``, or the first name beside it, numbered, that nothing has."""
    tries = (path, *(path.with_name(f"{path.name}-{number}") for number in range(2, 10_000)))
    return next(each for each in tries if not each.exists())


def _newest(run: Path, note: Note) -> Path:
    """The newest of the run's checkpoints, of which there are some, that is intact. Raises VerificationError where none
    is."""
    damaged = []
    for path in checkpoint.all_of(run):
        try:
            checkpoint.verify(path)
        except VerificationError as error:
            damaged.append(error.message)
            note(f"skipped a checkpoint: {error.message}")
        else:
            return path
    raise VerificationError(
        f"none of the {len(damaged)} checkpoints in {run / checkpoint.FOLDER} is intact; the newest: {damaged[0]}",
        f"`--resume {NEVER}` starts over",
    )


def _named(how: str) -> Path:
    """The checkpoint that ``--resume`` names, or the newest of the run that it names. Raises UsageError where it is
    neither, VerificationError where it is not intact."""
    path = Path(how).expanduser().absolute()
    if not how or not path.exists():
        words = f"{AUTO}, {NEVER}, a checkpoint or a run directory"
        raise UsageError(f"--resume: there is no {path}" if how else "--resume: says nothing", f"allowed: {words}")
    if path.name == checkpoint.FOLDER and checkpoint.all_of(path.parent):
        path = path.parent
    if checkpoint.all_of(path):
        return _newest(path, lambda _: None)
    if checkpoint.step_of(path) is None:
        kept = "a run whose checkpoints are gone" if (path / rundir.LOG).exists() else "neither a checkpoint nor a run"
        raise UsageError(f"--resume: {path} is {kept}")
    checkpoint.verify(path)
    return path


def _same(recipe: Recipe, path: Path, problem: str) -> None:
    """Raises UsageError with every setting that is not what it was for the checkpoint at ``path``.

    What is told by a hash may be elsewhere: files of rows that the checkpoint pins, and a base that is no hub model.
    """
    resolved = load_recipe(path / checkpoint.RESOLVED, max_bytes=RESOLVED_BYTES)
    moved = {f"data.train[{number}].path" for number, source in enumerate(resolved.data.train) if source.sha256}
    moved |= {"data.eval.path"} if resolved.data.eval and resolved.data.eval.sha256 else set()
    moved |= set() if resolved.model.revision else {"model.name"}
    _judge(asked(recipe), checkpoint.state_of(path)["asked"], frozenset(moved), problem, OTHERWISE)


def _judge(now: Mapping[str, Any], then: Mapping[str, Any], moved: frozenset[str], problem: str, hint: str) -> None:
    """Raises UsageError with every setting that differs, but for those that may and those that ``moved``."""
    free = {f"{section}.{name}" for section, names in FREE.items() for name in names}
    lines = [
        f"  {key}: {_said(then, key)} then, {_said(now, key)} now"
        for key in sorted({*then, *now})
        if then.get(key) != now.get(key)
        and key not in free
        and not (key in moved and key in then and key in now)
        and key.split(".")[0] not in FREE_WHOLE
    ]
    if lines:
        shown = lines[:20] + ([f"  and {len(lines) - 20} more"] if len(lines) > 20 else [])
        raise UsageError("\n".join([problem, *shown]), hint)


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
