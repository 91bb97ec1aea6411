"""An end to template code that never ends: the sandbox bounds what a template may touch, not how long it takes.

One watching thread, which looks twice a second, serves all that render. It raises in the thread that is over time,
which works between two steps of Python's interpreter: a loop is stopped, a single call of a C function is waited for.
"""

from __future__ import annotations

import ctypes
import threading
import time
from types import TracebackType

LOOKS_EVERY = 0.5  # seconds


class OverTimeError(BaseException):
    """Raised from outside where the deadline is over. No Exception: nothing in between may swallow it."""


class deadline:
    """A context that raises OverTimeError where it takes longer than ``seconds``, within half a second more.

    Not to be nested within one thread.
    """

    __slots__ = ("_fired", "_thread", "_until")

    def __init__(self, seconds: float) -> None:
        self._until, self._fired, self._thread = time.monotonic() + seconds, False, threading.get_ident()

    def __enter__(self) -> None:
        _watch()
        _watched[self._thread] = self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _lock:
            del _watched[self._thread]
            if self._fired:  # one that has not arrived yet must not arrive somewhere else
                _raise_in(self._thread, None)
        if self._fired and kind is None:
            raise OverTimeError

    def look(self, now: float) -> None:
        """Raise in the thread if its time is over."""
        if now >= self._until and not self._fired:
            self._fired = True
            _raise_in(self._thread, OverTimeError)


_lock = threading.Lock()
_watched: dict[int, deadline] = {}
_watcher: threading.Thread | None = None


def _watch() -> None:
    """Start the watching thread where there is none, as at first, and in a process that was forked."""
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        with _lock:
            if _watcher is None or not _watcher.is_alive():
                _watcher = threading.Thread(target=_look, name="deadline", daemon=True)
                _watcher.start()


def _look() -> None:
    while True:
        time.sleep(LOOKS_EVERY)
        with _lock:
            for watched in list(_watched.values()):
                watched.look(time.monotonic())


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Let ``error`` be raised in that thread, or take back what has not been raised yet."""
    raised = ctypes.py_object(error) if error else None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)
