"""What an exporter is: one form in which another program takes what a run left."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from peftctl.run import Run


@dataclass(frozen=True)
class Job:
    """One export. ``folder`` is to be filled, and gets its name when all is checked; what is in ``scratch``, on the
    same disk, is removed before. ``type``: what is written, numbers or parts, one of the exporter's ``types``, or "".
    ``base``: where the run's base model is now, if not where it was. ``note`` hears what takes time.
    """

    run: Run
    folder: Path
    scratch: Path
    type: str
    base: Path | None
    note: Callable[[str], None]


class Exporter(Protocol):
    """Writes a run's result in one form, and checks what it wrote in the program it is for."""

    @property
    def name(self) -> str:
        """The word for it: ``peftctl export RUN OUT --to NAME``."""

    @property
    def summary(self) -> str:
        """What it writes, in a line."""

    @property
    def types(self) -> tuple[str, ...]:
        """What it can write, types of numbers or parts of the result, that which it writes unasked first; none where
        that is no choice."""

    @property
    def opens_base(self) -> bool:
        """Whether it reads the run's base model."""

    @property
    def checked_with(self) -> Mapping[str, str]:
        """Modules that ``verify`` imports and a plain installation lacks, each with the extra that brings it."""

    @property
    def written_with(self) -> Mapping[str, str]:
        """The same of modules that ``write`` imports."""

    def check(self, run: Run, type_: str) -> None:
        """Raises UsageError where this run cannot be exported so, with what to do instead; before weights are read."""

    def write(self, job: Job) -> Any:
        """Fill ``job.folder``, and return what ``verify`` has to know of it."""

    def verify(self, job: Job, written: Any) -> Mapping[str, Any]:
        """Check ``job.folder`` against the run and return the figures: ``verified`` is "yes", or "no" with a
        ``reason``.

        Raises VerificationError where it differs.
        """
