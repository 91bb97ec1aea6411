"""When a run is saved, where, and what is thrown away then."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peftctl.atomic import PARTIAL
from peftctl.errors import MachineError
from peftctl.events import Events
from peftctl.recipe.schema import Recipe
from peftctl.sizes import size
from peftctl.train import checkpoint, kept
from peftctl.train.optim import STATE
from peftctl.train.session import Session

CLOCK = 600.0  # seconds between two checkpoints where the recipe does not say
FLOAT32 = 4


class Saver:
    """Writes a session's checkpoints into ``run``. ``beside`` gives the plain values that go with each.

    In a process that is not the first of several it writes nothing, since all hold the same.
    """

    def __init__(
        self, session: Session, run: Path, events: Events, beside: Callable[[], Mapping[str, Any]], last: Path | None
    ) -> None:
        self._session, self._run, self._events, self._beside = session, run, events, beside
        self.last = last
        # A run that goes on from another's checkpoint has none of its own yet.
        self._saved = session.step if last and last.parent == run / checkpoint.FOLDER else None
        self._at = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether it is time for another one."""
        every, step = self._session.recipe.train.save_every, self._session.step
        if every is None:
            return time.monotonic() - self._at >= CLOCK
        return step > 0 and step % every == 0

    def save(self, guards: Mapping[str, Any], history: Mapping[str, Any]) -> None:
        """Save the session as it stands, unless that was done at this step; then throw away what is old.

        Raises MachineError where the disk does not take it; what was saved before is as it was.
        """
        session = self._session
        if session.step in (0, self._saved) or not session.accelerator.is_main_process:
            return
        began, path = time.monotonic(), checkpoint.path_of(self._run, session.step)
        try:
            path.parent.mkdir(exist_ok=True)
            if path.exists():  # one that was skipped for damage, or that the run has measured again since
                _remove(path)
            checkpoint.write(kept.taken(session, {**self._beside(), "guards": guards}, history), path)
        except (OSError, MachineError, _safetensors_error()) as error:
            reason = getattr(error, "strerror", None) or getattr(error, "message", None) or str(error)
            before = f"the last checkpoint is {self.last}, and is as it was" if self.last else "there was none before"
            raise MachineError(
                f"the checkpoint of step {session.step} could not be written to {path.parent}: {reason}; {before}",
                "once that is mended the same command goes on",
            ) from error
        self._saved, self.last, self._at = session.step, path, time.monotonic()
        self._events.emit(
            "saved",
            step=session.step,
            path=str(path),
            size_bytes=sum(file.stat().st_size for file in path.iterdir()),
            seconds=round(time.monotonic() - began, 3),
        )
        self._prune(session.recipe.train.keep_checkpoints)

    def _prune(self, keep: int) -> None:
        """Throw away all but the newest ``keep`` checkpoints and the best one."""
        best = checkpoint.path_of(self._run, self._session.best["step"]) if self._session.best else None
        for path in checkpoint.all_of(self._run)[keep:]:
            if path != best:
                _remove(path)


def check_room(run: Path, recipe: Recipe, trained: int) -> None:
    """Raises MachineError where the disk has no room for the checkpoints that a run of ``trained`` parameters keeps.

    One more is there while the next is written, and what is published takes as much as the trained values.
    """
    each = trained * (FLOAT32 + STATE[recipe.train.optimizer])
    count = recipe.train.keep_checkpoints + 1 + recipe.eval.best
    held = sum(file.stat().st_size for path in checkpoint.all_of(run) for file in path.iterdir() if file.is_file())
    needed = each * count + trained * FLOAT32 - held
    free = shutil.disk_usage(run).free
    if needed > free:
        raise MachineError(
            f"output: {run} has room for {size(free)}, and the run's checkpoints need {size(needed)} "
            f"({count} of {size(each)}, one of them while the next is written)",
            "fewer with train.keep_checkpoints, or another --output",
        )


def _remove(path: Path) -> None:
    """Remove a checkpoint: first its name, so that no half of one is ever taken for one."""
    gone = path.with_name(f".{path.name}.pruned{PARTIAL}")
    shutil.rmtree(gone, ignore_errors=True)
    path.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    error: type[Exception] = SafetensorError
    return error
