"""A checkpoint: everything that going on needs and that the recipe alone does not give, complete or not there.

    trained.safetensors    what is trained, by name, float32: never the frozen base
    optimizer.safetensors  the optimizer's state, by the name of the tensor it belongs to
    method.safetensors     what the method keeps beside them, where it keeps something
    history.safetensors    the loss of every step, and the steps since the last step event
    state.json             step, counters, metrics, what the run was asked for, its base, its machine
    resolved.yaml          the recipe with every choice made, the micro-batch among them
    manifest.json          the size and SHA-256 of each, written last, with a hash of itself

There is no state of random numbers among them: order, start and dropout are functions of (seed, epoch, position) and of
(seed, step, process). Nothing in it is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.atomic import inventory, publish_directory, read_sealed, write_json, write_sealed, write_text
from peftctl.errors import VerificationError

FORMAT = 1
FOLDER = "checkpoints"
MANIFEST, STATE, RESOLVED = "manifest.json", "state.json", "resolved.yaml"
PARTS = ("trained", "optimizer", "method", "history")
PREFIX = "step-"

Tensors = Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: ``tensors`` by part, each by name; ``state`` plain values; ``resolved`` YAML."""

    tensors: Mapping[str, Tensors]
    state: Mapping[str, Any]
    resolved: str

    @property
    def step(self) -> int:
        return int(self.state["step"])


def path_of(run: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` is. Names sort as steps do, up to a million million of them."""
    return run / FOLDER / f"{PREFIX}{step:06d}"


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Publish ``checkpoint`` at ``path``, where nothing is. Raises OSError; then nothing has come to be there."""
    from safetensors.torch import save_file

    with publish_directory(path) as aside:
        for part, tensors in checkpoint.tensors.items():
            if tensors:
                whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
                save_file(whole, aside / f"{part}.safetensors")
        write_json(aside / STATE, checkpoint.state)
        write_text(aside / RESOLVED, checkpoint.resolved)
        facts = {"manifest": FORMAT, "kind": "checkpoint", "step": checkpoint.step}
        write_sealed(aside / MANIFEST, {**facts, "files": inventory(aside)})


def verify(path: Path) -> None:
    """Raises VerificationError naming what is missing in the checkpoint at ``path``, or not what was written."""
    try:
        manifest = read_sealed(path / MANIFEST)
    except FileNotFoundError:
        raise VerificationError(f"{path}: not complete: {MANIFEST} is missing") from None
    except OSError as error:
        raise VerificationError(f"{path}: {MANIFEST} cannot be read: {error.strerror}") from None
    if manifest.get("kind") != "checkpoint" or manifest.get("manifest") != FORMAT:
        raise VerificationError(f"{path / MANIFEST} is not the manifest of a checkpoint that this version wrote")
    _check_files(path, manifest["files"])


def _check_files(path: Path, recorded: Mapping[str, Any]) -> None:
    for name, entry in recorded.items():  # sizes first: hashing takes time
        file = path / name
        if not file.is_file():
            raise VerificationError(f"{file} is missing")
        if file.stat().st_size != entry["size_bytes"]:
            sizes = f"{file.stat().st_size:,} bytes, where {entry['size_bytes']:,} were written"
            raise VerificationError(f"{file} is damaged: it has {sizes}")
    try:
        found = inventory(path)
    except OSError as error:
        raise VerificationError(f"{path}: {error.filename} cannot be read: {error.strerror}") from None
    for name, entry in recorded.items():
        if found[name] != entry:
            raise VerificationError(f"{path / name} is damaged: it is not what was written")
    if added := sorted(found.keys() - {*recorded, MANIFEST}):
        raise VerificationError(f"{path / added[0]} is no part of the checkpoint")


def read(path: Path) -> Checkpoint:
    """The checkpoint at ``path``, on the CPU. Raises VerificationError where it is not complete and intact."""
    from safetensors.torch import load_file

    verify(path)
    return Checkpoint(
        {part: load_file(file) if (file := path / f"{part}.safetensors").exists() else {} for part in PARTS},
        json.loads((path / STATE).read_text("utf-8")),
        (path / RESOLVED).read_text("utf-8"),
    )


def state_of(path: Path) -> dict[str, Any]:
    """The plain values of the checkpoint at ``path``, which has been verified."""
    state: dict[str, Any] = json.loads((path / STATE).read_text("utf-8"))
    return state


def all_of(run: Path) -> list[Path]:
    """The run's checkpoints, newest first, whether intact or not."""
    folder = run / FOLDER
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in there if step_of(path) is not None), key=lambda path: -(step_of(path) or 0))


def step_of(path: Path) -> int | None:
    """The step that a checkpoint's name says, None where it is no such name."""
    tail = path.name.removeprefix(PREFIX)
    return int(tail) if path.name.startswith(PREFIX) and tail.isascii() and tail.isdecimal() else None
