"""A run directory as facts: how far it has come, what it measured, and whether its files are what it published."""

from __future__ import annotations

import fcntl
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from peftctl.errors import PeftctlError, UsageError
from peftctl.inspection import bounded
from peftctl.inspection.adapter import adapter_facts
from peftctl.inspection.adapter_config import NAME as ADAPTER_CONFIG
from peftctl.inspection.checkpoints import checkpoint_facts
from peftctl.inspection.journal import Journal, numbers, read_journal
from peftctl.inspection.own import weights
from peftctl.inspection.published import MANIFEST, Published, differing
from peftctl.inspection.values import count, mapping, number, word

RESOLVED, LOCK, UNFINISHED = "resolved.yaml", ".lock", "unfinished-"
# What is there from a run's first minute on.
STARTED = ("recipe.yaml", RESOLVED, "environment.json", "metrics.jsonl")
CHECKPOINTS, STEP = "checkpoints", re.compile(r"step-\d{6,}")
RESOLVED_BYTES = 500_000  # YAML is read in Python: a megabyte takes seconds

Status = Literal["finished", "in progress", "interrupted"]


@dataclass(frozen=True)
class RunFacts:
    """``status``: in progress where a process holds the run's lock. ``intact``: whether every file is what the
    manifest says was published, None for a run that has none; ``differing`` names those that are not, and how.

    ``quantization``: how the base was quantised. ``trained``: how many parameters. ``own``: what was trained where that
    is no adapter of PEFT's.

    ``goes_on_from``: the step of the newest checkpoint that is intact, of a run that is not finished; ``lost``:
    checkpoints newer than that one, which are not, and why.

    ``loss`` is the last that was logged, ``losses`` the first and last of all. ``seconds`` is None until a run is
    done. ``adapter`` has the facts of what was trained, in short. ``unfinished``: folders of earlier attempts.
    """

    path: str
    status: Status
    process: int | None
    step: int | None
    steps: int | None
    epoch: float | None
    loss: float | None
    learning_rate: float | None
    losses: Mapping[str, float | None]
    metrics: Mapping[str, Any]
    metrics_step: int | None
    task: str | None
    method: str | None
    settings: Mapping[str, Any]
    base_name: str | None
    base_commit: str | None
    base_source: str | None
    quantization: Mapping[str, Any] | None
    trained: int | None
    seconds: float | None
    seconds_per_step: float | None
    data: Mapping[str, Any]
    skipped_updates: int | None
    verified: bool | None
    intact: bool | None
    differing: Mapping[str, str]
    adapter: Mapping[str, Any] | None
    own: Mapping[str, Any] | None
    unfinished: tuple[str, ...]
    goes_on_from: int | None
    lost: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def wrong(self) -> bool:
        """Whether a file or checkpoint is not what was written, or the adapter does not do what it should."""
        problems = self.adapter["problems"] if self.adapter else ()
        return self.intact is False or bool(self.lost) or any(problem["level"] == "error" for problem in problems)

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain values, none of them NaN or infinite."""
        return {"kind": "run", **asdict(self)}


def run_facts(path: Path) -> RunFacts:
    """The run in the directory ``path``, finished or not.

    Raises UsageError where there is none, or its manifest is damaged.
    """
    there = bounded.names(path)
    finished = MANIFEST in there
    if not finished and not set(there) & {*STARTED, LOCK}:
        raise UsageError(f"{path} is no run directory: it holds neither {MANIFEST} nor {', '.join(STARTED)}")
    manifest = bounded.json_object(path / MANIFEST) if finished else {}
    if finished and manifest.get("kind") != "run":
        raise UsageError(f"{path / MANIFEST} is not the manifest of a run")
    journal, process = read_journal(path), _holder(path)
    step, done = mapping(journal.last("step")), mapping(journal.last("done"))
    notes = _notes(path, finished, process is not None, journal)
    made_by = manifest if finished else _of_recipe(path, notes)
    known = Published(manifest, str(path.absolute()), differing=differing(path, manifest) if finished else {})
    adapter, own = _artifact(path, known, notes) if finished else (None, None)
    method, base = mapping(made_by.get("method")), mapping(made_by.get("base"))
    evaluated = mapping(journal.last("eval"))
    goes_on_from, lost = (None, {}) if finished or process is not None else _newest(path)
    return RunFacts(
        path=str(path),
        status="finished" if finished else "in progress" if process is not None else "interrupted",
        process=process or None,
        step=count(manifest.get("steps")) if finished else count(step.get("step")),
        steps=count(step.get("steps")) or count(manifest.get("steps")),
        epoch=number(step.get("epoch")),
        loss=number(step.get("loss")),
        learning_rate=number(step.get("learning_rate")),
        losses={name: number(value) for name, value in mapping(manifest.get("losses")).items()},
        metrics=numbers(manifest.get("metrics")) or numbers(evaluated),
        metrics_step=count(evaluated.get("step")),
        task=word(made_by.get("task")),
        method=word(method.get("name")),
        settings={name: value for name, value in method.items() if name != "name"},
        base_name=word(base.get("name")),
        base_commit=word(base.get("commit")),
        base_source=word(base.get("source")),
        quantization=mapping(made_by.get("quantization")) or None,
        trained=count(manifest.get("trainable_parameters")),
        seconds=number(done.get("seconds")),
        seconds_per_step=number(step.get("seconds_per_step")),
        data=_data(manifest, journal),
        skipped_updates=count(manifest.get("skipped_updates")) if finished else len(journal.all("skipped")),
        verified=mapping(mapping(manifest.get("verified")).get("reload")).get("verified") == "yes"
        if finished
        else None,
        intact=not known.differing if finished else None,
        differing=known.differing,
        adapter=adapter,
        own=own,
        unfinished=tuple(name for name in there if name.startswith(UNFINISHED)),
        goes_on_from=goes_on_from,
        lost=lost,
        notes=tuple(notes),
    )


def _newest(run: Path) -> tuple[int | None, dict[str, str]]:
    """The step that the run goes on from, and the newer checkpoints that are damaged, each with what is wrong first."""
    folder = run / CHECKPOINTS
    lost: dict[str, str] = {}
    names = [name for name in bounded.names(folder) if STEP.fullmatch(name)] if folder.is_dir() else []
    for name in sorted(names, reverse=True):
        facts = checkpoint_facts(folder / name)
        if facts.complete and facts.intact:
            return facts.step, lost
        what = [f"lacks {each}" for each in facts.missing] + [f"{file} {how}" for file, how in facts.damaged.items()]
        lost[name] = what[0]
    return None, lost


def _holder(run: Path) -> int | None:
    """The process that holds the run's lock, 0 where it does not say which; None where none does.

    A lock that its process left behind is held by nobody.
    """
    if not bounded.is_file(run / LOCK):
        return None
    with bounded.opened(run / LOCK) as file:
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            said = file.read(20).decode("ascii", "replace").strip()
            return int(said) if said.isascii() and said.isdecimal() else 0
        except OSError:  # a file system without locks
            return None
        return None


def _notes(path: Path, finished: bool, held: bool, journal: Journal) -> list[str]:
    notes = []
    if finished and held:
        notes.append("published, and its process goes on: held-out rows are measured last")
    if journal.torn:
        notes.append(f"{journal.torn:,} lines of metrics.jsonl are no events")
    if not journal.whole and not finished:
        notes.append("metrics.jsonl is long, and was read at its ends only: there may be more skipped updates")
    if finished and (lost := [name for name in STARTED if not bounded.is_file(path / name)]):
        notes.append(f"missing: {', '.join(lost)}")
    return notes


def _of_recipe(path: Path, notes: list[str]) -> dict[str, Any]:
    """Method, task and base of a run without a manifest, from its resolved recipe."""
    from peftctl.recipe import load as load_recipe

    resolved = path / RESOLVED
    if not bounded.is_file(resolved):
        return {}
    if bounded.size_of(resolved) > RESOLVED_BYTES:
        notes.append(f"{RESOLVED} is too long to be read here")
        return {}
    try:
        recipe = load_recipe(resolved, max_bytes=RESOLVED_BYTES)
    except PeftctlError:
        notes.append(f"{RESOLVED} is no recipe")
        return {}
    method = recipe.method.model_dump(mode="json", exclude={"targets"})
    base = {"name": recipe.model.name, "commit": recipe.model.revision}
    quantised = recipe.model.quantization
    quantization = quantised.model_dump(mode="json") if quantised else None
    return {"method": method, "task": recipe.task.name, "base": base, "quantization": quantization}


def _data(manifest: Mapping[str, Any], journal: Journal) -> dict[str, Any]:
    """What became of the rows, by side: numbers, and dropped rows by reason."""
    said = mapping(manifest.get("data"))
    heard = {str(event.get("source")): event for event in journal.all("data")}
    found = {}
    for side in ("train", "eval"):
        facts = mapping(said.get(side)) or mapping(heard.get(side))
        counts: dict[str, Any] = {name: value for name, value in facts.items() if count(value) is not None}
        if dropped := mapping(facts.get("dropped")):
            counts["dropped"] = {name: value for name, value in dropped.items() if count(value) is not None}
        if counts:
            found[side] = counts
    return found


def _artifact(path: Path, known: Published, notes: list[str]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What was trained: an adapter of PEFT's in short, or else what peftctl saved of it."""
    folder = word(known.manifest.get("artifact")) or ""
    if not folder or "/" in folder or not (path / folder).is_dir():
        return None, None
    try:
        if bounded.is_file(path / folder / ADAPTER_CONFIG):
            return adapter_facts(path / folder, known=known).in_short(), None
        return None, {"folder": folder, **weights(path / folder)}
    except PeftctlError as error:
        notes.append(error.message)
        return None, None
