"""What changes while training: the model, the optimizer, and how far the run has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from peftctl.data.collate import Collator
from peftctl.data.supply import Supply
from peftctl.evaluation.measure import Measurement
from peftctl.methods import Method
from peftctl.model.fast import FastPaths
from peftctl.model.start import Start
from peftctl.objectives import Objective
from peftctl.recipe.schema import Recipe
from peftctl.tasks import Task


@dataclass
class Session:
    """A run in progress. ``recipe`` is resolved; ``step`` counts optimizer steps done, ``losses`` has one of each."""

    recipe: Recipe
    task: Task
    method: Method
    objective: Objective
    accelerator: Any
    model: Any
    optimizer: Any
    fast: FastPaths
    collate: Collator
    supply: Supply
    measure: Measurement | None
    start: Start | None = None
    step: int = 0
    skipped: int = 0
    losses: list[float] = field(default_factory=list)
