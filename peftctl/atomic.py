"""Files that are complete or absent: write aside, fsync, rename, fsync the folder.

A reader never sees half a file, whatever kills the writer. A directory is published the same way, and its
manifest, written last, names every file with size and SHA-256.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from peftctl.errors import MachineError, UsageError, VerificationError

# What the names end in of files and folders that are not complete.
PARTIAL = ".partial"
SEAL = "sha256_of_the_rest"


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` (UTF-8) in one step.

    Raises OSError, or MachineError where its folder takes no file; the old file then still stands.
    """
    with _writable(path.parent):
        handle, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), _default_mode())
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(aside)
        raise
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """``write_text`` of indented JSON; NaN and infinities are refused, since no JSON reader takes them."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """``write_json`` of an object with a hash of itself, so that no byte of the file can change unnoticed."""
    write_text(path, _sealed(value))


def read_sealed(path: Path) -> dict[str, Any]:
    """What ``write_sealed`` wrote. Raises VerificationError where the file is not what it was, OSError where it is
    not there."""
    found = path.read_bytes()
    try:
        value = json.loads(found)
        value.pop(SEAL)
        if _sealed(value).encode() == found:
            return dict(value)
    except (ValueError, AttributeError, KeyError, RecursionError):
        pass
    raise VerificationError(f"{path} is damaged: it is not what was written")


def _sealed(value: dict[str, Any]) -> str:
    seal = hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
    return json.dumps({**value, SEAL: seal}, indent=2, allow_nan=False) + "\n"


@contextmanager
def publish_directory(target: Path) -> Iterator[Path]:
    """A folder to fill beside ``target``; on a clean exit it is synced and renamed to ``target``.

    On any exception the folder is removed and ``target`` never comes to exist; what a process that was killed left of
    it is removed the next time. Raises UsageError where ``target`` exists already and is no empty folder.
    """
    # A link cannot be renamed over, wherever it leads.
    if os.path.lexists(target) and (target.is_symlink() or not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target}: exists already", hint="name another place, or remove it first")
    with _writable(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_left(target)
        aside, held = _beside(target)
    aside.chmod(_default_mode() | (_default_mode() & 0o444) >> 2)
    try:
        yield aside
        for path in sorted(aside.rglob("*")):
            if path.is_file() and not path.is_symlink():
                path.chmod(_default_mode())  # safetensors leaves 0600, whatever the umask
            sync(path)
        sync(aside)
        try:
            os.rename(aside, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            raise UsageError(f"{target}: was made by somebody else meanwhile", hint="name another place") from None
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    finally:
        os.close(held)
    sync(target.parent)


def _beside(target: Path) -> tuple[Path, int]:
    """A new folder that is to become ``target``, and a handle that holds its lock for as long as this process lives."""
    while True:
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PARTIAL, dir=target.parent))
        with suppress(FileNotFoundError):  # another process may take it for a dead one's before it is locked
            held = os.open(aside, os.O_RDONLY)
            fcntl.flock(held, fcntl.LOCK_EX)
            if aside.exists():
                return aside, held
            os.close(held)


def _clear_left(target: Path) -> None:
    """Remove folders that were to become ``target`` and whose writers are gone."""
    clear_partial(target.parent, target.name)


def clear_partial(folder: Path, name: str = "*") -> None:
    """Remove from ``folder`` what was to become ``name`` there, or anything, and whose writers are gone.

    Only folders are locked by their writers: that no one writes a file there now is for the caller to know.
    """
    escaped = name if name == "*" else glob.escape(name)
    for left in folder.glob(f".{escaped}.*{PARTIAL}"):
        with suppress(OSError):
            handle = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                elif name == "*":
                    left.unlink()
            finally:
                os.close(handle)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """The system's refusal to make something in ``folder``, as a MachineError."""
    try:
        yield
    except OSError as error:
        raise MachineError(f"{folder} cannot be written to: {error.strerror}") from None


def sync(path: Path) -> None:
    """fsync a file or a folder: after this a power cut does not undo it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inventory(folder: Path) -> dict[str, dict[str, Any]]:
    """Every file below ``folder`` by its relative name, with ``size_bytes`` and ``sha256``."""
    return {
        path.relative_to(folder).as_posix(): {"size_bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def held(folder: Path, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a published ``folder`` where it says all that is ``asked`` and every file is as it says."""
    try:
        manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text("utf-8"))
        plain = json.loads(json.dumps(asked, default=str))
        same = all(manifest.get(name) == value for name, value in plain.items())
    except (OSError, ValueError, AttributeError):
        return None
    there = {name: entry for name, entry in inventory(folder).items() if name != "manifest.json"} if same else {}
    return manifest if same and there == manifest.get("files") else None


@contextmanager
def lock(path: Path, busy: str, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (made, and removed again), or raise MachineError(``busy``) if another has it.

    The kernel drops the lock with the process that holds it, so a lock left by a killed process is no lock.
    """
    file = _locked(path, busy, wait)
    try:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _locked(path: Path, busy: str, wait: bool) -> TextIO:
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # Whoever held it may have removed the file since it was opened; a lock on that one excludes nobody.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
            file.close()
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            file.close()
            raise MachineError(f"{busy} (process {holder})") from None


def _default_mode() -> int:
    """0666 less the umask. Linux tells the umask without changing it, which would race with other threads."""
    with suppress(OSError, StopIteration, ValueError), open("/proc/self/status", encoding="ascii") as file:
        return 0o666 & ~int(next(line for line in file if line.startswith("Umask:")).split()[1], 8)
    return 0o644
