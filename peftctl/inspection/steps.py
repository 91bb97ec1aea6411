"""The rows that an optimizer step learned from, so that a loss that leaps leads to data."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError
from peftctl.inspection import bounded
from peftctl.inspection.journal import NAME as JOURNAL
from peftctl.inspection.runs import RESOLVED

LARGEST = 50_000_000  # bytes of a resolved recipe: it names every target


@dataclass(frozen=True)
class StepFacts:
    """``rows``: file and line (or row) of each row of ``step``, in the step's order, with its loss where that was
    logged. ``loss`` and ``grad_norm`` are those of the step event that covers it; ``made``: whether the run has come
    to it."""

    path: str
    step: int
    steps: int
    loss: float | None
    grad_norm: float | None
    made: bool
    rows: Sequence[dict[str, Any]]

    wrong = False

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain values."""
        return {"kind": "step", **asdict(self)}


def step_facts(run: Path, step: int, note: Any) -> StepFacts:
    """The rows of ``step``, counted from 1, of the run in ``run``, finished or not.

    Raises UsageError where there is no such run or step, DataError where the data is not what it was then.
    """
    from peftctl.data.prepare import open_rows
    from peftctl.data.supply import supplied
    from peftctl.recipe import load

    resolved = run / RESOLVED
    if not bounded.is_file(resolved):
        raise UsageError(f"{run} has no {RESOLVED}: no step was made there")
    recipe = load(resolved, max_bytes=LARGEST)
    if recipe.data.streaming:
        raise UsageError(f"--step: the rows of {run} were streamed, and streamed rows are not numbered")
    supply, _ = supplied(open_rows(recipe, note, weights=False), note)
    if not 1 <= step <= supply.steps:
        raise UsageError(f"--step: there is no such step (found {step}); allowed: 1 to {supply.steps}")
    places = supply.places(step - 1) or []
    logged = _logged(run, step)
    losses = logged.get("losses") or [None] * len(places)
    rows = [{"file": place.file, "line": place.line, "loss": loss} for place, loss in zip(places, losses, strict=True)]
    return StepFacts(str(run), step, supply.steps, logged.get("loss"), logged.get("grad_norm"), "made" in logged, rows)


def _logged(run: Path, step: int) -> dict[str, Any]:
    """What the run's log says of the step: its rows' losses, and the first step event from it on."""
    found: dict[str, Any] = {}
    if not bounded.is_file(run / JOURNAL):
        return found
    with (run / JOURNAL).open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except ValueError:
                continue  # the last line of a run that was killed
            if event.get("event") == "rows" and event.get("step") == step:
                found["losses"] = event["losses"]
            if event.get("event") == "step" and event.get("step", 0) >= step:
                return {**found, "made": True, "loss": event["loss"], "grad_norm": event["grad_norm"]}
    return found
