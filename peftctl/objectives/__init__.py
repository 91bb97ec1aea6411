"""What training lowers. To add one: a file here and a line in the table."""

from __future__ import annotations

from peftctl.objectives import class_cross_entropy, cross_entropy, multi_label, regression
from peftctl.objectives.contract import Loss, Objective

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        cross_entropy.OBJECTIVE,
        class_cross_entropy.OBJECTIVE,
        multi_label.OBJECTIVE,
        regression.OBJECTIVE,
    )
}

__all__ = ["OBJECTIVES", "Loss", "Objective"]
