"""Files complete or absent, folders published whole, and locks that die with their holder."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from peftctl import atomic
from peftctl.errors import MachineError, UsageError


@pytest.fixture
def umask() -> Iterator[None]:
    """The umask as it was, once the test is done with it."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def fails(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


def test_text_is_written_as_utf8_and_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    atomic.write_text(path, "old, and longer")
    atomic.write_text(path, "né\n")
    assert path.read_bytes() == "né\n".encode()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("call", ["replace", "fsync", "fchmod"])
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    monkeypatch.setattr(os, call, fails)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_text_that_is_no_utf8_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        atomic.write_text(path, "new \udcff")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_an_interrupt_while_writing_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_text(tmp_path / "a.txt", "new")
    assert list(tmp_path.iterdir()) == []


def test_file_and_folder_are_synced_in_this_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are on disk before the name is, and the name before write_text returns."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def renamed(a: str, b: Path) -> None:
        done.append("rename")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    atomic.write_text(tmp_path / "a.txt", "new")
    assert done == ["file", "rename", "folder"]


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002, 0o000])
def test_a_written_file_has_the_mode_that_open_would_give(tmp_path: Path, mask: int) -> None:
    os.umask(mask)
    atomic.write_text(tmp_path / "a.txt", "x")
    assert mode(tmp_path / "a.txt") == 0o666 & ~mask


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002, 0o000])
def test_a_published_folder_and_its_files_have_the_modes_that_mkdir_and_open_would_give(
    tmp_path: Path, mask: int
) -> None:
    os.umask(mask)
    target = tmp_path / "out"
    with atomic.publish_directory(target) as aside:
        (aside / "sub").mkdir()
        (aside / "sub" / "private").write_text("x")
        (aside / "sub" / "private").chmod(0o600)
    assert mode(target / "sub" / "private") == 0o666 & ~mask
    assert mode(target / "sub") == 0o777 & ~mask
    assert mode(target) == 0o777 & ~mask


def test_json_is_indented_and_keeps_its_letters(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "a.json", {"né": [1, 2.5, None], "path": Path("/x")})
    text = (tmp_path / "a.json").read_text("utf-8")
    assert json.loads(text) == {"né": [1, 2.5, None], "path": "/x"}
    assert "né" in text
    assert text.endswith("}\n")
    assert '\n  "né"' in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_numbers_that_json_has_not(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(tmp_path / "a.json", {"x": value})
    assert list(tmp_path.iterdir()) == []


def test_a_published_folder_holds_what_it_was_filled_with(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "out"
    with atomic.publish_directory(target) as aside:
        assert aside.parent == target.parent
        assert not target.exists()
        (aside / "a").write_text("1")
        (aside / "sub").mkdir()
        (aside / "sub" / "b").write_text("2")
    assert (target / "a").read_text() == "1"
    assert (target / "sub" / "b").read_text() == "2"
    assert [p.name for p in target.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_while_filling_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fill() -> None:
        with atomic.publish_directory(tmp_path / "out") as aside:
            (aside / "sub").mkdir()
            (aside / "sub" / "half").write_text("x")
            raise error("stop")

    with pytest.raises(error):
        fill()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_failure_while_publishing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fill() -> None:
        with atomic.publish_directory(tmp_path / "out") as aside:
            (aside / "a").write_text("x")
            monkeypatch.setattr(os, call, fails)

    with pytest.raises(OSError, match="No space left"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_is_a_place_to_publish_in(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with atomic.publish_directory(tmp_path / "out") as aside:
        (aside / "a").touch()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


@pytest.mark.parametrize("kind", ["file", "folder", "link", "link to an empty folder"])
def test_nothing_is_published_over_what_exists(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
        (target / "mine").touch()
    elif kind == "link":
        target.symlink_to("nowhere")
    elif kind == "link to an empty folder":
        target.symlink_to(tmp_path / ".empty")
        (tmp_path / ".empty").mkdir()
    else:
        target.write_text("mine")
    entered = False
    with pytest.raises(UsageError) as refused, atomic.publish_directory(target):
        entered = True
    assert not entered
    assert str(refused.value) == f"{target}: exists already\nhint: name another place, or remove it first"
    assert [p.name for p in tmp_path.iterdir() if p.name != ".empty"] == ["out"]


def test_what_a_killed_writer_left_is_removed_and_what_another_is_writing_is_not(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from peftctl.atomic import publish_directory\n"
        "with publish_directory(Path(sys.argv[1])) as aside:\n"
        "    (aside / 'half').write_text('x'); print(aside, flush=True); time.sleep(60)"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    killed, alive = (Path(writer.stdout.readline().strip()) for writer in writers if writer.stdout)
    writers[0].kill()
    writers[0].communicate()
    with atomic.publish_directory(tmp_path / "out") as aside:
        assert not killed.exists()
        assert (alive / "half").exists()
        (aside / "whole").write_text("y")
    writers[1].kill()
    writers[1].communicate()
    assert (tmp_path / "out" / "whole").exists()


def test_hashes_and_inventory_are_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "c.bin").write_bytes(b"abc")
    (tmp_path / "a.txt").write_bytes(b"")
    # FIPS 180-2, appendix B.1
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert atomic.sha256(tmp_path / "b" / "c.bin") == known
    assert atomic.inventory(tmp_path) == {
        "a.txt": {"size_bytes": 0, "sha256": hashlib.sha256().hexdigest()},
        "b/c.bin": {"size_bytes": 3, "sha256": known},
    }


HOLD = """
import sys
from pathlib import Path
from peftctl.atomic import lock
with lock(Path(sys.argv[1]), "busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path) -> subprocess.Popen[str]:
    """A process that holds the lock on ``path`` until its standard input closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def ended(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)


def test_a_lock_excludes_another_process_and_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    process = holder(path)
    try:
        with pytest.raises(MachineError) as refused, atomic.lock(path, "somebody is here"):
            pass
        assert str(refused.value) == f"somebody is here (process {process.pid})"
        assert path.exists()
    finally:
        ended(process)
    assert process.returncode == 0
    assert not path.exists()
    with atomic.lock(path, "busy"):
        pass


def test_the_lock_of_a_killed_holder_is_free(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    process = holder(path)
    process.send_signal(signal.SIGKILL)
    ended(process)
    assert path.exists()
    with atomic.lock(path, "busy"):
        assert path.read_text() == str(os.getpid())
    assert not path.exists()


def test_a_waiting_lock_is_had_once_the_holder_is_gone(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    process = holder(path)
    waiter = subprocess.Popen(
        [sys.executable, "-c", HOLD.replace('"busy"', '"busy", wait=True'), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    ended(process)
    assert waiter.stdout is not None
    assert waiter.stdout.readline() == "held\n"
    assert path.read_text() == str(waiter.pid)
    ended(waiter)
    assert waiter.returncode == 0
    assert not path.exists()


def test_a_lock_is_let_go_on_an_error(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with pytest.raises(RuntimeError), atomic.lock(path, "busy"):
        raise RuntimeError
    assert not path.exists()
    with atomic.lock(path, "busy"):
        pass


def test_a_lock_file_left_behind_is_no_lock(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    path.write_text("999999999")
    with atomic.lock(path, "busy"):
        assert path.read_text() == str(os.getpid())


def test_the_same_process_cannot_hold_a_lock_twice(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    busy = pytest.raises(MachineError, match=f"busy \\(process {os.getpid()}\\)")
    with atomic.lock(path, "first"), busy, atomic.lock(path, "busy"):
        pass
    assert not path.exists()


def test_a_lock_had_on_a_file_that_was_replaced_meanwhile_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between opening the file and locking it, its holder let go and another process made a new one."""
    path = tmp_path / ".lock"
    calls = 0

    def flock(file: Any, how: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.unlink()
            path.touch()
        real(file, how)

    real = fcntl.flock
    monkeypatch.setattr(fcntl, "flock", flock)
    with atomic.lock(path, "busy"):
        assert path.read_text() == str(os.getpid())
        with pytest.raises(MachineError), atomic.lock(path, "busy"):
            pass
    assert not path.exists()


def test_a_lock_file_that_vanishes_while_it_is_looked_at_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two waiters: while one looks whether its file is still the lock, the other removes it."""
    path = tmp_path / ".lock"
    exists = Path.exists
    looked = 0

    def once_there(self: Path, **how: Any) -> bool:
        nonlocal looked
        there = exists(self, **how)
        if self == path and there:
            looked += 1
            if looked == 1:
                path.unlink()
        return there

    monkeypatch.setattr(Path, "exists", once_there)
    with atomic.lock(path, "busy", wait=True):
        assert path.read_text() == str(os.getpid())
