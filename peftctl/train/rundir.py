"""A run directory being made: claimed, held by one process, and filled.

    recipe.yaml  resolved.yaml  environment.json  metrics.jsonl  adapter/  manifest.json

manifest.json is written last: a directory that has one holds a finished run.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peftctl import __version__
from peftctl.atomic import lock
from peftctl.crashlog import redact
from peftctl.errors import MachineError, UsageError
from peftctl.train.trackers import FOLDER

LOCK = ".lock"
STARTED = ("recipe.yaml", "resolved.yaml", "environment.json", "metrics.jsonl")
OURS = {*STARTED, "adapter", "model", FOLDER}
UNFINISHED = "unfinished-"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "safetensors", "tokenizers")


@contextmanager
def claim(path: Path, note: Callable[[str], None]) -> Iterator[Path]:
    """Make ``path`` and hold its lock. Raises UsageError where something is there, MachineError where it cannot be.

    What a run that never finished left there is moved aside, into ``unfinished-N``, and ``note`` is told.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"output: {path} is a file, or lies below one") from None
    except OSError as error:
        raise MachineError(f"output: {path} cannot be made: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise MachineError(f"output: {path} cannot be written to")
    with lock(path / LOCK, f"output: another process is working in {path}"):
        _move_unfinished(path, note)
        yield path


def clear(path: Path) -> None:
    """Take back what a run that made no step has written, so that nothing is in the way of the next."""
    for name in STARTED:
        (path / name).unlink(missing_ok=True)
    if {entry.name for entry in path.iterdir()} <= {LOCK}:
        (path / LOCK).unlink(missing_ok=True)
        path.rmdir()


def _move_unfinished(path: Path, note: Callable[[str], None]) -> None:
    there = sorted(entry.name for entry in path.iterdir() if entry.name != LOCK)
    left = [name for name in there if not name.startswith(UNFINISHED)]
    if not left:
        return
    if "manifest.json" in left or not set(left) <= OURS:
        what = "a finished run" if "manifest.json" in left else "something already"
        raise UsageError(
            f"output: {path} holds {what} ({', '.join(left[:4])}{', ...' if len(left) > 4 else ''})",
            "nothing is overwritten: give --output another directory, or remove this one",
        )
    taken = [int(name.removeprefix(UNFINISHED)) for name in there if name.removeprefix(UNFINISHED).isdigit()]
    aside = path / f"{UNFINISHED}{max(taken, default=0) + 1}"
    aside.mkdir()
    for name in left:
        (path / name).rename(aside / name)
    note(f"a run that did not finish was in {path}; what it left is now in {aside.name}/")


def environment() -> dict[str, Any]:
    """The versions and the machine a run was made on."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "peftctl": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "packages": {name: _version(name) for name in PACKAGES},
        "command": redact(" ".join([Path(sys.argv[0]).name, *sys.argv[1:]])),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
