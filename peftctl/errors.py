"""What can go wrong, as one tree. The command line catches the root and exits with the class's code.

    PeftctlError
    ├── RecipeError        2    a recipe that cannot be used; carries every fault found
    ├── UsageError         2    a command line or a call that cannot be obeyed
    ├── DataError          3    rows that cannot be read, understood or learned from
    ├── MachineError       4    memory, disk, device, network, a missing package
    ├── VerificationError  5    an output differs from what it was made from; nothing was published
    ├── DivergedError      5    training produced numbers that are not finite, or trained nothing
    └── StoppedError      75    training was stopped from outside, or by its time; what it had done is saved
                               (130 where Ctrl-C stopped it)

Anything else that reaches the command line is a bug of ours: exit code 1, with a log (see ``crashlog``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

EXIT_DONE = 0
EXIT_BUG = 1
EXIT_STOPPED = 75
EXIT_INTERRUPTED = 130


class PeftctlError(Exception):
    """The root. ``message`` says where and what; ``hint`` says what to do about it."""

    exit_code: int = EXIT_BUG

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nhint: {self.hint}" if self.hint else self.message


@dataclass(frozen=True, order=True)
class Place:
    """Where something stands: a file (or ``--set``), its line and column, both counted from 1."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return ":".join([self.file, *(str(n) for n in (self.line, self.column) if n)])


@dataclass(frozen=True)
class Fault:
    """One thing wrong with a recipe.

    ``key`` is the dotted path of the setting, ``found`` what stands there, ``allowed`` what may stand there,
    ``nearest`` the known word closest to what was found. ``also`` is a second place the fault points at.
    """

    place: Place
    key: str
    problem: str
    found: str = ""
    allowed: str = ""
    nearest: str = ""
    also: Place | None = None

    def as_dict(self) -> dict[str, Any]:
        """The fault for programs: an editor or a CI job."""
        also = {"file": self.also.file, "line": self.also.line, "column": self.also.column} if self.also else None
        fields = {key: getattr(self, key) for key in ("key", "problem", "found", "allowed", "nearest")}
        place = self.place
        return {"file": place.file, "line": place.line, "column": place.column, **fields, "also": also}

    def __str__(self) -> str:
        text = f"{self.place}: " + (f"{self.key}: " if self.key else "") + self.problem
        if self.found:
            text += f" (found {self.found})"
        if self.also:
            text += f" (see also {self.also})"
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        if self.nearest:
            text += f"; did you mean {self.nearest}?"
        return text


class RecipeError(PeftctlError):
    """Every fault of a recipe at once, sorted by place."""

    exit_code = 2

    def __init__(self, faults: list[Fault], hint: str = "") -> None:
        self.faults = sorted(faults, key=lambda fault: (fault.place, fault.key))
        super().__init__("\n".join(str(fault) for fault in self.faults), hint)


class UsageError(PeftctlError):
    """A command line or a call that cannot be obeyed as it stands."""

    exit_code = 2


class DataError(PeftctlError):
    """Rows that cannot be read, understood or learned from."""

    exit_code = 3


class MachineError(PeftctlError):
    """Something this machine lacks: memory, disk, a device, the network, a package."""

    exit_code = 4


class VerificationError(PeftctlError):
    """An output that differs from what it was made from. Nothing was published."""

    exit_code = 5


class DivergedError(PeftctlError):
    """Training whose numbers are not finite, or that left a trainable tensor untouched."""

    exit_code = 5


class StoppedError(PeftctlError):
    """Training that a signal or its own time limit has stopped: the same command goes on from where it stood."""

    exit_code = EXIT_STOPPED

    def __init__(self, message: str, hint: str = "", *, interrupted: bool = False) -> None:
        super().__init__(message, hint)
        if interrupted:
            self.exit_code = EXIT_INTERRUPTED
