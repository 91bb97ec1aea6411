"""A run directory being made: claimed, held by one process, and filled.

    recipe.yaml  resolved.yaml  environment.json  metrics.jsonl  checkpoints/  adapter/  manifest.json

manifest.json is written last: a directory that has one holds a finished run.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from peftctl import __version__
from peftctl.atomic import clear_partial, inventory, lock, sha256
from peftctl.crashlog import redact
from peftctl.errors import MachineError, UsageError, VerificationError
from peftctl.train.checkpoint import FOLDER as CHECKPOINTS
from peftctl.train.trackers import FOLDER

LOCK = ".lock"
LOG = "metrics.jsonl"
SAVED = b'{"event": "saved"'
RESOLVED = "resolved.yaml"
STARTED = ("recipe.yaml", RESOLVED, "environment.json", LOG)
PUBLISHED = ("adapter", "model")
OURS = {*STARTED, *PUBLISHED, FOLDER, CHECKPOINTS}
MANIFEST = "manifest.json"
UNFINISHED = "unfinished-"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "bitsandbytes", "safetensors", "tokenizers")


@contextmanager
def claim(path: Path) -> Iterator[Path]:
    """Make ``path`` and hold its lock. Raises UsageError where it cannot be a folder, MachineError where it cannot be
    made, or another process holds it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"output: {path} is a file, or lies below one") from None
    except OSError as error:
        raise MachineError(f"output: {path} cannot be made: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise MachineError(f"output: {path} cannot be written to")
    try:
        with lock(path / LOCK, f"output: another process is working in {path}"):
            clear_partial(path)
            if (path / CHECKPOINTS).is_dir():
                clear_partial(path / CHECKPOINTS)
            yield path
    finally:
        with suppress(OSError):
            path.rmdir()  # if nothing has come of it


def clear(path: Path) -> None:
    """Take back what a run that made no step has written, so that nothing is in the way of the next."""
    for name in STARTED:
        (path / name).unlink(missing_ok=True)


def left(path: Path) -> list[str]:
    """What an earlier run has left in ``path``, by name. Raises UsageError where some of it is no run's."""
    there = sorted(entry.name for entry in path.iterdir() if entry.name != LOCK)
    names = [name for name in there if not name.startswith(UNFINISHED)]
    if not {*names} <= {*OURS, MANIFEST}:
        raise taken(path, names)
    return names


def taken(path: Path, names: list[str]) -> UsageError:
    """The error to raise where ``path`` has ``names`` in it, which are not to be overwritten."""
    what = "a finished run" if MANIFEST in names else "something already"
    return UsageError(
        f"output: {path} holds {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})",
        "nothing is overwritten: give --output another directory, or remove this one",
    )


def move_unfinished(path: Path, note: Callable[[str], None]) -> None:
    """Move what a run that never finished has left into ``unfinished-N``, and tell ``note``."""
    names = left(path)
    if not names:
        return
    numbers = [entry.name.removeprefix(UNFINISHED) for entry in path.iterdir()]
    aside = path / f"{UNFINISHED}{max((int(each) for each in numbers if each.isdigit()), default=0) + 1}"
    aside.mkdir()
    for name in names:
        (path / name).rename(aside / name)
    note(f"a run that did not finish was in {path}; what it left is now in {aside.name}/")


def unpublish(path: Path) -> None:
    """Take back what a run published that was stopped before it was done: it will be published again.

    The manifest goes first: without it nothing is taken for finished.
    """
    (path / MANIFEST).unlink(missing_ok=True)
    for name in PUBLISHED:
        shutil.rmtree(path / name, ignore_errors=True)


def cut_log(path: Path, size: int) -> None:
    """Take from the run's log what came after it had ``size`` bytes, where a checkpoint was written: those steps are
    made again. What the log says of that checkpoint stays."""
    log = path / LOG
    if not log.exists() or log.stat().st_size <= size:
        return
    with log.open("rb") as file:
        file.seek(size)
        line = file.readline()
    os.truncate(log, size + (len(line) if line.startswith(SAVED) and line.endswith(b"\n") else 0))


def has_saved(path: Path) -> bool:
    """Whether the run's log tells of a checkpoint."""
    log = path / LOG
    if not log.exists():
        return False
    with log.open("rb") as file:
        return any(line.startswith(SAVED) for line in file)


def check_published(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raises VerificationError naming the first file of a finished run that is not what its manifest says it is."""
    recorded, artifact = manifest.get("files"), path / str(manifest.get("artifact"))
    if not isinstance(recorded, dict):
        raise VerificationError(f"{path / MANIFEST} is damaged: it names no files")
    found = {f"{artifact.name}/{name}": entry for name, entry in inventory(artifact).items()}
    for name in sorted({*recorded, *found}):
        there = path / name
        if name not in found and there.is_file():
            found[name] = {"size_bytes": there.stat().st_size, "sha256": sha256(there)}
        if name not in found:
            raise VerificationError(f"{there} is missing, which the run's manifest names")
        if recorded.get(name) != found[name]:
            raise VerificationError(f"{there} is not the file that the run's manifest says was published")


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


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """What of two environments may give other bits."""
    for key in ("python", "processor", "threads", "gpus"):
        if then.get(key) != now[key]:
            yield f"{key} {then.get(key)} then, {now[key]} now"
    before = then.get("packages", {})
    yield from (f"{name} {before.get(name)} then, {version} now" for name, version in now["packages"].items()
                if before.get(name) != version)  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
