"""What is to be merged into what: a run, or an adapter's folder, or several of either, and their base model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from peftctl.atomic import inventory
from peftctl.errors import UsageError
from peftctl.inspection.keys import some
from peftctl.methods import METHODS, Method
from peftctl.model import identity, locate
from peftctl.model.attach import HEADS
from peftctl.model.locate import Base
from peftctl.recipe.schema import ModelSettings, QuantizationSettings
from peftctl.run import Run, at_base, open_run
from peftctl.tables import table
from peftctl.tasks import TASKS, Task, task_of

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
IDENTITY = {"name", "commit", "layout_sha256", "files"}  # what a base is told by
INSTEAD = "serve the base with the adapter beside it: peftctl export RUN OUT --to adapter"


@dataclass(frozen=True)
class Part:
    """An adapter's ``folder``, the method that opens it, with settings, and its ``weight`` among several."""

    folder: Path
    method: Method
    settings: Any
    weight: float = 1.0


@dataclass(frozen=True)
class Source:
    """``parts`` to be merged, in this order, and the ``base`` that they were trained on, as ``model`` says.

    ``run``: the one that the first part came from, None for another tool's adapter. ``forced``: in what the base
    differs from the one that was trained on, where it was to be taken all the same.
    """

    parts: tuple[Part, ...]
    base: Base
    model: ModelSettings
    task: Task
    run: Run | None
    forced: str = ""

    @property
    def part(self) -> Part:
        return self.parts[0]

    def facts(self) -> dict[str, Any]:
        """What says what was merged, for a manifest."""
        return {
            "adapters": [
                {"folder": str(part.folder), "method": part.method.name, "weight": part.weight}
                | {"files": {name: entry["sha256"] for name, entry in inventory(part.folder).items()}}
                for part in self.parts
            ],
            "base": identity.identity(self.base),
            "base_forced": self.forced or None,
        }


def open_source(path: Path, base: Path | None, note: Callable[[str], None], *, force: bool | None = False) -> Source:
    """The run or adapter in ``path``; ``base``: where its base model is now, if not where it was.

    ``force``: whether another base will do; None where nobody can say that it does.

    Raises UsageError where there is none, it cannot be merged, or, without ``force``, its base is another one than it
    was trained on; VerificationError where the run is not what its manifest says.
    """
    if (of := _run_of(path)) is not None:
        note(f"{path} is what {of} published, and is merged as that run")
        path = of
    alone = not (path / "manifest.json").exists() or _holds(path, "export")
    if alone and (path / CONFIG).exists():
        return _of_adapter(path.absolute(), base, note, force=force)
    if _holds(path, "merged"):
        raise UsageError(f"{path} is a merged model already")
    if not (path / "manifest.json").exists() and (path / "config.json").exists():
        raise UsageError(
            f"{path} holds a model, and no adapter that could be merged", "name a run or an adapter's folder"
        )
    run = open_run(path)
    check_merges(run)
    method = METHODS[run.recipe.method.name]
    run.check_intact()
    recipe = at_base(run, base)
    found = locate.locate(recipe, note)
    identity.check_whole(found.folder)
    forced = _forced(found, run.manifest["base"], note, force=force)
    part = Part(run.artifact, method, run.recipe.method)
    return Source((part,), found, recipe.model, task_of(run.recipe.task), run, forced)


def _run_of(path: Path) -> Path | None:
    """The run whose adapter is in the folder ``path``, None where it is no run's."""
    above = path.absolute().parent / "manifest.json"
    if not (path / CONFIG).exists() or not above.exists():
        return None
    try:
        facts = json.loads(above.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    ours = isinstance(facts, dict) and facts.get("kind") == "run" and facts.get("artifact") == path.absolute().name
    return above.parent if ours else None


def _forced(found: Base, recorded: dict[str, Any], note: Callable[[str], None], *, force: bool | None) -> str:
    """In what the base differs from the ``recorded`` one, "" where it does not. Raises UsageError without ``force``."""
    try:
        identity.check(found, recorded)
    except UsageError as error:
        if force is None:
            raise
        if not force:
            raise UsageError(error.message, f"{error.hint}; --force-base merges into it all the same") from None
        note(f"merged all the same, as --force-base asks for: {error.message}")
        return error.message
    return ""


def check_merges(run: Run) -> None:
    """Raises UsageError where what the run trained cannot be merged, with what to do instead."""
    method = METHODS[run.recipe.method.name]
    if method.artifact == "model":
        raise UsageError(f"{run.path}: its run trained the model itself: {run.artifact} is what merging would make")
    _check_merges(run.path, method)
    if (run.artifact / HEADS).exists():
        raise UsageError(
            f"{run.path}: its head stands beside what PEFT saves of {method.name} ({HEADS}), and is not merged with it",
            "peftctl.load(run) opens both",
        )


def combine(sources: Sequence[tuple[Source, float]]) -> Source:
    """Several as one, each with its weight. Raises UsageError where they are of other bases, tasks or methods."""
    first = sources[0][0]
    for other, _ in sources[1:]:
        for what, one, another in (
            ("base", str(first.base.folder), str(other.base.folder)),
            ("method", first.part.method.name, other.part.method.name),
            ("task", first.task.name, other.task.name),
            ("quantised base", _bits(first), _bits(other)),
        ):
            if one != another:
                raise UsageError(
                    f"--adapter: {other.part.folder} has another {what} than {first.part.folder} ({another}, not {one})"
                )
    for source, _ in sources:
        if getattr(source.part.settings, "dora", False) or _read(source.part.folder / CONFIG).get("use_dora"):
            raise UsageError(
                f"--adapter: {source.part.folder} is DoRA, whose magnitudes do not add up: it cannot be one of several",
                "merge it alone, and train or merge the others onto the result",
            )
    if not any(weight for _, weight in sources):
        raise UsageError("--adapter: every weight is 0, so there is nothing to merge")
    return replace(first, parts=tuple(replace(source.part, weight=weight) for source, weight in sources))


def _bits(source: Source) -> str:
    kept = source.model.quantization
    return f"{kept.bits} bits" if kept else "none"


def _task(folder: Path, task_type: Any) -> Task:
    """The task of an adapter that is no run's. Raises UsageError where its model cannot be made without the run."""
    task = next((task for task in TASKS.values() if task.peft_type == task_type), None)
    if task is None:
        allowed = ", ".join(task.peft_type for task in TASKS.values())
        raise UsageError(f"{folder}: made for the task {task_type}; allowed: {allowed}")
    if "labels" in task.uses:
        raise UsageError(f"{folder}: made for the task {task_type}, and does not say its labels", "name its run")
    return task


def _of_adapter(folder: Path, base: Path | None, note: Callable[[str], None], *, force: bool | None) -> Source:
    config = _read(folder / CONFIG)
    if not (folder / WEIGHTS).exists():
        raise UsageError(f"{folder} holds no {WEIGHTS}, so there is nothing to merge")
    peft_type, task_type = config.get("peft_type"), config.get("task_type") or "CAUSAL_LM"
    method = next((method for method in METHODS.values() if method.peft_type == peft_type), None)
    if method is None or not peft_type:
        raise UsageError(f"{folder}: its peft_type is {peft_type!r}, which the installed peft does not have")
    _check_merges(folder, method)
    task = _task(folder, task_type)
    said = config.get("base_model_name_or_path") or ""
    if not isinstance(said, str):
        raise UsageError(f"{folder / CONFIG}: base_model_name_or_path is no text (found {said!r})")
    fields = table("peft_configs")["methods"].get(method.name)
    if strange := [name for name in config if fields and name not in fields]:
        note(f"{folder / CONFIG}: the installed peft does not know {some(strange)}, and leaves that out")
    named = str(base) if base is not None else said
    if not named:
        raise UsageError(f"{folder} does not say what its base model is", "name it with --base")
    revision = None if base is not None or Path(named).expanduser().exists() else config.get("revision")
    exported = _read(folder / "manifest.json") if _holds(folder, "export") else {}
    bits = exported.get("quantization")
    try:
        quantization = QuantizationSettings.model_validate(bits) if bits is not None else None
    except ValidationError:
        raise UsageError(f"{folder / 'manifest.json'} is damaged: its quantization is none") from None
    model = ModelSettings(name=named, revision=revision, quantization=quantization)
    known: dict[str, Any] = {"name": method.name, "modules_to_save": tuple(config.get("modules_to_save") or ())}
    settings = method.settings.model_construct(**known)
    found = locate.find(model, Path(named).expanduser().absolute(), note)
    forced, recorded = "", exported.get("base")
    identity.check_whole(found.folder)
    if exported:
        if not isinstance(recorded, dict) or not recorded.keys() >= IDENTITY:
            raise UsageError(f"{folder / 'manifest.json'} is damaged: it does not say what the base was")
        forced = _forced(found, recorded, note, force=force)
    return Source((Part(folder, method, settings),), found, model, task, None, forced)


def _check_merges(path: Path, method: Method) -> None:
    seen = table("capabilities")["methods"].get(method.name)
    if seen is not None and seen["merges"] != "yes":
        raise UsageError(f"{path}: {method.name} cannot be merged: {seen['merges']}", INSTEAD)


def _holds(path: Path, kind: str) -> bool:
    """Whether a folder's manifest says that it is of this kind."""
    try:
        facts = json.loads((path / "manifest.json").read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(facts, dict) and (facts.get("kind") == kind or facts.get("to") == kind)


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is not JSON") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path} is no adapter's config: it holds no mapping")
    return config
