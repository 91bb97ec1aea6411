"""What an exporter is: one form in which another program takes what a run left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from peftctl.run import Run


class Exporter(Protocol):
    """Writes a run's result in one form, and checks what it wrote in the program it is for."""

    @property
    def name(self) -> str:
        """The word for it: ``peftctl export RUN OUT --to NAME``."""

    @property
    def summary(self) -> str:
        """What it writes, in a line."""

    def check(self, run: Run) -> None:
        """Raises UsageError where this run cannot be exported so, with what to do instead."""

    def write(self, run: Run, folder: Path, note: Callable[[str], None]) -> Any:
        """Fill the empty ``folder``, and return what ``verify`` has to know of it. ``note`` hears what takes time."""

    def verify(self, run: Run, folder: Path, written: Any) -> Mapping[str, Any]:
        """Check ``folder`` against the run and return the figures: ``verified`` is "yes", or "no" with a ``reason``.

        Raises VerificationError where it differs.
        """
