"""Mean squared error of a number a row.

loss = sum_i (z_i - y_i)^2 / rows
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.objectives.contract import Loss, of_rows


@dataclass(frozen=True)
class Regression:
    name: str = "regression"
    splittable: bool = True

    def count(self, row: Any) -> float:
        return 1.0

    def step(self, model: Any, batch: Mapping[str, Any], *, by_row: bool = False) -> Loss:
        """``labels`` [rows, 1]."""
        return of_rows(self.each(model(**batch["inputs"]).logits.float(), batch), batch, by_row=by_row)

    def each(self, logits: Any, batch: Mapping[str, Any]) -> Any:
        """Each row's squared error, [rows]."""
        return (logits - batch["labels"]).square().sum(1)


OBJECTIVE = Regression()
