"""A checkpoint of a trainer as facts: where training stood, and whether all is there that going on needs.

To add a layout: a function here and a line in LAYOUTS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peftctl.atomic import read_sealed
from peftctl.errors import PeftctlError, UsageError
from peftctl.inspection import bounded
from peftctl.inspection.adapter import PICKLED, WEIGHTS, adapter_facts
from peftctl.inspection.adapter_config import NAME as ADAPTER_CONFIG
from peftctl.inspection.journal import numbers
from peftctl.inspection.published import files_differing
from peftctl.inspection.values import count, mapping, number, word

STATE = "trainer_state.json"
# What peftctl's own have in them, and no other trainer's.
OWN_STATE, TRAINED, OPTIMIZER, MANIFEST = "state.json", "trained.safetensors", "optimizer.safetensors", "manifest.json"
SEALED_BYTES = 1_000_000
SINGLE, INDEX = "model.safetensors", bounded.INDEX
PICKLED_MODEL = ("pytorch_model.bin", "pytorch_model.bin.index.json")


@dataclass(frozen=True)
class CheckpointFacts:
    """``missing``: what going on as if nothing had happened needs, and is not there. ``damaged``: weight files that
    are not whole, with how. ``unopened``: pickles, which were not looked into; they run code when they are read.
    """

    path: str
    layout: str
    step: int | None
    steps: int | None
    epoch: float | None
    epochs: float | None
    loss: float | None
    learning_rate: float | None
    metrics: Mapping[str, float | None]
    best: Mapping[str, Any] | None
    holds: str
    size_bytes: int
    complete: bool
    missing: tuple[str, ...]
    intact: bool
    damaged: Mapping[str, str]
    unopened: tuple[str, ...]
    adapter: Mapping[str, Any] | None
    notes: tuple[str, ...] = ()

    @property
    def wrong(self) -> bool:
        """Whether a file is damaged, or the adapter in it does not do what it should."""
        problems = self.adapter["problems"] if self.adapter else ()
        return not self.intact or any(problem["level"] == "error" for problem in problems)

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain values, none of them NaN or infinite."""
        return {"kind": "checkpoint", **asdict(self)}


@dataclass(frozen=True)
class Progress:
    """Where training stood, as far as a layout says it."""

    step: int | None = None
    steps: int | None = None
    epoch: float | None = None
    epochs: float | None = None
    loss: float | None = None
    learning_rate: float | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    best: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Layout:
    """One trainer's way: how its folder is known, what it says of training, and what it needs beside the weights.

    Of each of ``needed`` one must be there; a name that ends in * stands for every name that begins so.
    """

    name: str
    known_by: tuple[str, ...]
    needed: tuple[tuple[str, ...], ...]
    progress: Callable[[Path, Sequence[str]], Progress]


def checkpoint_facts(path: Path) -> CheckpointFacts:
    """The checkpoint in the folder ``path``. Raises UsageError where there is none, or its state is damaged."""
    there = bounded.names(path)
    layout = next((each for each in LAYOUTS if any(_there(name, there) for name in each.known_by)), None)
    if layout is None:
        inner = sorted((name for name in there if name.startswith("checkpoint-")), key=_number)
        hint = f"its last one is {path / inner[-1]}" if inner else ""
        raise UsageError(f"{path} is no checkpoint: it holds nothing that training goes on from", hint)
    progress = layout.progress(path, there)
    missing = [" or ".join(ways) for ways in layout.needed if not any(_there(name, there) for name in ways)]
    holds, damaged, adapter, notes = _weights(path, there)
    if holds == "no weights":
        missing.insert(0, f"weights ({WEIGHTS}, {SINGLE} or its index)")
    return CheckpointFacts(
        path=str(path),
        layout=layout.name,
        **{name: getattr(progress, name) for name in Progress.__dataclass_fields__},
        holds=holds,
        size_bytes=sum(bounded.size_of(path / name) for name in bounded.below(path)),
        complete=not missing,
        missing=tuple(missing),
        intact=not damaged,
        damaged=damaged,
        unopened=bounded.pickles(path),
        adapter=adapter,
        notes=tuple(notes),
    )


def _there(name: str, there: Sequence[str]) -> bool:
    return any(each.startswith(name[:-1]) for each in there) if name.endswith("*") else name in there


def _number(name: str) -> int:
    tail = name.rpartition("-")[2]
    return int(tail) if tail.isascii() and tail.isdecimal() and len(tail) < 18 else -1


def _weights(path: Path, there: Sequence[str]) -> tuple[str, dict[str, str], Mapping[str, Any] | None, list[str]]:
    """What the weights are of, which of their files are damaged, the adapter in short, and what else to say."""
    damaged: dict[str, str] = {}
    notes: list[str] = []
    if TRAINED in there:
        return "what is trained", _own_damaged(path, there), None, notes
    if ADAPTER_CONFIG in there:
        if WEIGHTS not in there and PICKLED not in there:
            return "no weights", damaged, None, notes
        try:
            return "an adapter", damaged, adapter_facts(path).in_short(), notes
        except PeftctlError as error:
            damaged[WEIGHTS if WEIGHTS in there else ADAPTER_CONFIG] = error.message
            return "an adapter", damaged, None, notes
    if SINGLE in there or INDEX in there:
        try:
            for file in bounded.weight_files(path):
                _whole(file, damaged)
        except PeftctlError as error:
            damaged[INDEX] = error.message
        return "a model", damaged, None, notes
    if any(name in there for name in PICKLED_MODEL):
        return "a model, in pickles", damaged, None, notes
    if sharded := [name for name in there if (path / name).is_dir()]:
        notes.append(f"weights may be in {', '.join(sharded[:4])}, spread over processes: they were not looked into")
        return "weights spread over processes", damaged, None, notes
    return "no weights", damaged, None, notes


def _own_damaged(path: Path, there: Sequence[str]) -> dict[str, str]:
    """What of a checkpoint of peftctl's is not what its manifest says was written."""
    if MANIFEST not in there or bounded.size_of(path / MANIFEST) > SEALED_BYTES:
        return {MANIFEST: "is missing, so nothing says what was written"}
    try:
        recorded = mapping(read_sealed(path / MANIFEST).get("files"))
    except PeftctlError as error:
        return {MANIFEST: error.message}
    added = [name for name in bounded.below(path) if name not in recorded and name != MANIFEST]
    return {**files_differing(path, recorded), **dict.fromkeys(added, "is no part of the checkpoint")}


def _whole(file: Path, damaged: dict[str, str]) -> None:
    try:
        bounded.header(file)
    except PeftctlError as error:
        damaged[file.name] = error.message


def _own(path: Path, there: Sequence[str]) -> Progress:
    """peftctl's: state.json."""
    if OWN_STATE not in there:
        return Progress(step=_step_of_name(path))
    state = bounded.json_object(path / OWN_STATE)
    measured = [entry for entry in _list(state.get("evaluations")) if isinstance(entry, Mapping)]
    best = mapping(state.get("best"))
    return Progress(
        step=count(state.get("step")),
        steps=count(state.get("steps")),
        metrics=numbers(measured[-1]) if measured else {},
        best={"value": number(best.get("loss")), "step": count(best.get("step")), "checkpoint": None} if best else None,
    )


def _of_trainer(path: Path, there: Sequence[str]) -> Progress:
    """transformers' Trainer: all of it in trainer_state.json."""
    if STATE not in there:
        return Progress(step=_step_of_name(path))
    state = bounded.json_object(path / STATE)
    history = [entry for entry in _list(state.get("log_history")) if isinstance(entry, Mapping)]
    logged = next((entry for entry in reversed(history) if "loss" in entry), {})
    measured = next((entry for entry in reversed(history) if any(str(name).startswith("eval_") for name in entry)), {})
    best = {
        "value": number(state.get("best_metric")),
        "step": count(state.get("best_global_step")),
        "checkpoint": word(state.get("best_model_checkpoint")),
    }
    return Progress(
        step=count(state.get("global_step")),
        steps=count(state.get("max_steps")),
        epoch=number(state.get("epoch")),
        epochs=number(state.get("num_train_epochs")),
        loss=number(logged.get("loss")),
        learning_rate=number(logged.get("learning_rate")),
        metrics={name: number(value) for name, value in measured.items() if name.startswith("eval_")},
        best=best if best["value"] is not None or best["checkpoint"] else None,
    )


def _of_name(path: Path, there: Sequence[str]) -> Progress:
    """Accelerate and others: no more than what the folder's name may say."""
    return Progress(step=_step_of_name(path))


def _step_of_name(path: Path) -> int | None:
    step = _number(path.absolute().name)
    return step if step >= 0 else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


LAYOUTS = (
    Layout(
        "peftctl",
        (TRAINED,),
        ((MANIFEST,), (OWN_STATE,), (OPTIMIZER,), ("history.safetensors",), ("resolved.yaml",)),
        _own,
    ),
    Layout(
        "transformers",
        (STATE, "optimizer.pt", "training_args.bin", "rng_state*"),
        (
            (STATE,),
            # Fully sharded and DeepSpeed training keep these by process.
            ("optimizer.pt", "optimizer.bin", "optimizer_0", "global_step*"),
            ("scheduler.pt", "global_step*"),
            ("rng_state*",),
        ),
        _of_trainer,
    ),
    Layout(
        "accelerate",
        ("random_states_*", "optimizer.bin", "optimizer.safetensors", "scheduler.bin"),
        (("optimizer*", "global_step*", "pytorch_model*"), ("random_states_*",)),
        _of_name,
    ),
    Layout("torch.distributed", (".metadata",), (("*.distcp", "__0_0.distcp", "__*"),), _of_name),
)
