"""What each optimizer step takes, made in the background while the step before it is computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType

from peftctl.tasks import Batch


@dataclass(frozen=True)
class Work:
    """One process's part of a step: its micro-batches in host memory, and what the whole step holds.

    ``count`` is what the step's summed loss is divided by, over all processes; ``share`` what this process multiplies
    its part of the sum by: nothing where the step has no row for it, which then takes one along to keep in pace.
    ``longest`` is the largest micro-batch in tokens, ``most_rows`` how many rows the fullest has. ``rows``: of each
    micro-batch which of the step's rows are in it, by their place in the step.
    """

    batches: Sequence[Batch]
    count: float
    share: float
    tokens: int
    supervised: int
    longest: int
    most_rows: int
    rows: Sequence[Sequence[int]] = ()


class Feed:
    """Makes the work of a step ahead of time. To be used as a context, at whose end the background thread is gone."""

    def __init__(self, make: Callable[[int], Work], steps: int) -> None:
        self._make, self._steps = make, steps
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._ahead: dict[int, Future[Work]] = {}

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def take(self, step: int) -> Work:
        """The work of ``step``; that of the next begins to be made. Raises what making it raised."""
        work = self._ahead.pop(step, None) or self._pool.submit(self._make, step)
        made = work.result()
        if step + 1 < self._steps and step + 1 not in self._ahead:
            self._ahead[step + 1] = self._pool.submit(self._make, step + 1)
        return made

    def forget(self) -> None:
        """Throw away what was made ahead: micro-batches are cut otherwise from now on."""
        for future in self._ahead.values():
            future.cancel()
        self._ahead.clear()
