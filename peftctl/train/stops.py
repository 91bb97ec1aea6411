"""Stopping from outside: signals, and the time a run may take.

While steps are made a signal is noted, and the loop stops after the step it is at. Elsewhere it stops what is going on
at once: between two steps nothing is lost, and what is being published is not there before it is complete. A second
signal ends the process on the spot.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from peftctl.errors import StoppedError

# Ctrl-C; the end of a job, of a machine that is taken back, of a container; what Slurm is asked to send before it.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
AGAIN = "the same command goes on from there"


def seconds(duration: str) -> int:
    """A duration of the recipe in seconds: ``1h30m`` is 5400."""
    return sum(int(count) * UNITS[unit] for count, unit in re.findall(r"(\d+)([dhms])", duration))


class Stops:
    """Why training is to stop, if it is. ``began`` is when the run did, by ``time.monotonic``."""

    def __init__(self, max_time: str | None = None, began: float | None = None) -> None:
        # What the same command does after a stop outside the loop.
        self.hint = "no step was made yet: the same command begins anew"
        self._limit = seconds(max_time) if max_time else None
        self._max_time, self._began = max_time, time.monotonic() if began is None else began
        self._signal: signal.Signals | None = None
        self._noting = False

    def asked(self, *, moved: bool = True) -> str:
        """What asked for it, in words; "" where nothing has.

        The time a run may take ends it only where it has ``moved``, or it would never come to an end by being started
        again.
        """
        if self._signal is not None:
            return self._signal.name
        if moved and self._limit is not None and time.monotonic() - self._began >= self._limit:
            return f"train.max_time: {self._max_time}"
        return ""

    def error(self, message: str, hint: str = AGAIN) -> StoppedError:
        """What to raise when training has stopped, with the exit code of what asked for it."""
        return StoppedError(message, hint, interrupted=self._signal == signal.SIGINT)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Within this context signals come here. Only a process's main thread is told of any."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        # Who ignores one, as nohup and shells do for jobs in the background, goes on ignoring it.
        before = {each: signal.getsignal(each) for each in SIGNALS}
        heard = [each for each, handler in before.items() if handler not in (signal.SIG_IGN, None)]
        for each in heard:
            signal.signal(each, self._heard)
        try:
            yield
        finally:
            for each in heard:
                signal.signal(each, before[each])

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Within this context the first signal is noted in ``asked``, and stops nothing by itself."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within ``noted``, a part that the first signal stops: what it was about is done again another time."""
        self._noting = False
        try:
            if self._signal is not None:
                raise self.error(f"stopped by {self._signal.name}", self.hint)
            yield
        finally:
            self._noting = True

    def _heard(self, number: int, frame: FrameType | None) -> Any:
        if self._signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._signal = signal.Signals(number)
        if not self._noting:
            raise self.error(f"stopped by {self._signal.name}", self.hint)
