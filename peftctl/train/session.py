"""What changes while training: the model, the optimizer, and how far the run has come."""

from __future__ import annotations

from collections.abc import Mapping
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
    """A run in progress. ``recipe`` is resolved; ``step`` counts optimizer steps done, ``losses`` has one of each.

    ``trained``: the parameters that are trained, by name, in the optimizer's order. ``evaluations``: what was measured
    while training, each with its ``step``; ``best``: step and loss of the best of them, where the recipe asks for it.
    ``lengthened``: the steps after which the run got another length, each with the length that it had.
    """

    recipe: Recipe
    task: Task
    method: Method
    objective: Objective
    accelerator: Any
    model: Any
    optimizer: Any
    trained: Mapping[str, Any]
    fast: FastPaths
    collate: Collator
    supply: Supply
    measure: Measurement | None
    start: Start | None = None
    step: int = 0
    skipped: int = 0
    losses: list[float] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None
    lengthened: list[list[int]] = field(default_factory=list)
