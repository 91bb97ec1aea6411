"""What a run reports while it goes on. The loop emits events; the console, metrics.jsonl and trackers listen.

An event is one flat JSON object with at least ``event``, its kind. Kinds and their fields:

    stage   name, detail                          a new part of the job has begun
    data    source, read, kept, dropped, ...      what became of the rows
    model   parameters, trainable, targets, ...   what is trained
    fast    packed, loss, replaced, ...           what is computed in a faster, equal way
    step    step, steps, loss, learning_rate, tokens, supervised_tokens, tokens_per_s, grad_norm,
            peak_memory_bytes, epoch, seconds_per_step     one optimizer step (sums since the last such event)
    rows    step, losses                          each row's loss, in the step's order (train.log_rows)
    eval    step, loss, ...                       an evaluation during training
    resumed step, path                            the run goes on from a checkpoint
    saved   step, path, size_bytes, seconds       a checkpoint is written
    skipped step, reason                          an update left out because its numbers were not finite
    warning message                               something a person should look at
    done    path, verified, ...                   the run is published
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from peftctl.crashlog import redact
from peftctl.errors import MachineError

Event = Mapping[str, Any]
Listener = Callable[[Event], None]


class Events:
    """Hands each event to every listener, in the order they were added."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = list(listeners)

    def add(self, listener: Listener) -> None:
        self._listeners.append(listener)

    def emit(self, kind: str, **fields: Any) -> None:
        event = {"event": kind, **fields}
        for listener in self._listeners:
            listener(event)


class MetricsLog:
    """A listener that appends each event to ``path`` as a line of JSON, so that a killed run keeps its past.

    Events before ``begin`` are kept back: a run that comes to nothing leaves the log of an earlier one as it was.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._early: list[Event] | None = []

    def begin(self) -> None:
        """Write from here on, and first what was kept back."""
        early, self._early = self._early or [], None
        for event in early:
            self(event)

    def __call__(self, event: Event) -> None:
        """Raises MachineError where the disk does not take it."""
        if self._early is not None:
            self._early.append(event)
            return
        line = redact(json.dumps(event, ensure_ascii=False, allow_nan=False, default=str))
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            raise MachineError(f"{self._path} cannot be written to: {error.strerror}") from error
