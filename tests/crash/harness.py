"""Killing and failing a process at every system call that changes what is on the disk.

A server process imports everything once and forks a child for every try. strace attaches to the child before it begins,
so that its calls are counted from the same point each time: one run records them, native code's among them, and every
other kills the process at one of them (SIGKILL, as a power cut or the kernel would) or has the call fail.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

CALLS = (
    "write", "pwrite64", "writev", "fsync", "fdatasync", "ftruncate", "truncate", "rename", "renameat", "renameat2",
    "unlink", "unlinkat", "rmdir", "mkdir", "mkdirat", "fchmod", "fchmodat", "chmod", "link", "linkat", "symlink",
)  # fmt: skip
# What a call that changes the disk may fail with there.
ERRORS = {"write": ("ENOSPC", "EIO"), "pwrite64": ("ENOSPC", "EIO"), "mkdir": ("ENOSPC",), "ftruncate": ("EIO",)}
OTHERS = ("EIO",)
LINE = re.compile(r"^(\d+) +(\w+)\((.*)$")
WITHIN = re.compile(r'^\d+<([^>]*)>, "([^/"][^"]*)"')  # a folder that is open, and a name in it
NEEDED = "strace is needed for this, and is not there: install the package strace"
PATIENCE = 120.0


@dataclass(frozen=True)
class Call:
    """The ``nth`` call of ``name`` by one thread of the process, and ``what`` it was about."""

    name: str
    nth: int
    what: str

    @property
    def faults(self) -> list[str]:
        """What is tried at it."""
        return ["SIGKILL", *ERRORS.get(self.name, OTHERS)]


@dataclass(frozen=True)
class Ended:
    """How a try ended: ``code`` as a shell says it, 137 for SIGKILL; ``said`` on both outputs."""

    code: int
    said: str
    hit: str


def strace() -> str:
    """The path of strace. Raises AssertionError naming the package where there is none."""
    found = shutil.which("strace")
    assert found, NEEDED
    return found


def record(action: Callable[[], None], root: Path) -> list[Call]:
    """Every call of ``action``, run in a child, that changes something below ``root``, in order."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        ended = _run(action, ["-y", "-s", "0", "-o", str(log)])
        assert ended.code == 0, ended.said
        return _calls(log.read_text("utf-8", "replace"), root)


def attempt(action: Callable[[], None], call: Call | None, fault: str = "") -> Ended:
    """Run ``action`` in a child, in which ``call`` meets with ``fault``; undisturbed where there is none."""
    if call is None:
        return _run(action, None)
    what = f"signal={fault}" if fault == "SIGKILL" else f"error={fault}"
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "log"
        options = ["-y", "-s", "0", "-o", str(log), "-e", f"inject={call.name}:{what}:when={call.nth}"]
        ended = _run(action, options)
        hits = [line for line in log.read_text("utf-8", "replace").splitlines() if "(INJECTED)" in line]
        killed = "+++ killed by SIGKILL" in log.read_text("utf-8", "replace")
        return Ended(ended.code, ended.said, hits[0] if hits else "killed" if killed else "")


def _run(action: Callable[[], None], options: Sequence[str] | None) -> Ended:
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            _be_child(action, output.fileno(), wait=options is not None)
        tracer = None
        try:
            if options is not None:
                _until(lambda: _state(child) == "T")
                command = [strace(), "-f", "-e", f"trace={','.join(CALLS)}", *options, "-p", str(child)]
                tracer = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                _until(lambda: _tracer(child) > 0)
                os.kill(child, signal.SIGCONT)
            status = _wait(child)
            if tracer:
                tracer.wait(PATIENCE)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        output.seek(0)
        code = os.waitstatus_to_exitcode(status)
        return Ended(128 - code if code < 0 else code, output.read().decode("utf-8", "replace"), "")


def _be_child(action: Callable[[], None], output: int, *, wait: bool) -> None:
    """The child's whole life."""
    code = 1
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        if wait:
            os.kill(os.getpid(), signal.SIGSTOP)
        action()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(child: int) -> int:
    deadline = time.monotonic() + PATIENCE
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        assert time.monotonic() < deadline, "the process does not end"
        time.sleep(0.005)


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "strace does not attach"
        time.sleep(0.002)


def _state(process: int) -> str:
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]


def _tracer(process: int) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("TracerPid:")).split()[1])


def _calls(log: str, root: Path) -> list[Call]:
    """The calls of strace's log that are about something below ``root``, numbered as strace counts: by thread and name.

    A call that another thread's interrupts is on two lines, of which the first counts.
    """
    counted: Counter[tuple[str, str]] = Counter()
    found = []
    for line in log.splitlines():
        if not (match := LINE.match(line)):
            continue
        thread, name, rest = match.groups()
        counted[thread, name] += 1
        if str(root) in rest:
            rest = WITHIN.sub(r'"\1/\2"', rest)
            paths = [path for path in re.findall(r'[<"]([^">]*)[>"]', rest) if path.startswith(str(root))]
            about = [path.removeprefix(f"{root}/") for path in paths]
            found.append(Call(name, counted[thread, name], " ".join(about)))
    return found
