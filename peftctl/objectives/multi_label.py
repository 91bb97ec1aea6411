"""Cross-entropy of yes and no for every label of a row.

loss = sum_ij -[y_ij log s(z_ij) + (1 - y_ij) log(1 - s(z_ij))] / (rows * labels)        s: the logistic function
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.objectives.contract import Loss, of_rows


@dataclass(frozen=True)
class MultiLabel:
    name: str = "multi_label"
    splittable: bool = True

    def count(self, row: Any) -> float:
        return float(len(row.labels))

    def step(self, model: Any, batch: Mapping[str, Any], *, by_row: bool = False) -> Loss:
        """``labels`` [rows, labels], 0 or 1."""
        losses = self.each(model(**batch["inputs"]).logits.float(), batch)
        return of_rows(losses, batch, by_row=by_row, each=batch["labels"].shape[1])

    def each(self, logits: Any, batch: Mapping[str, Any]) -> Any:
        """The sum of each row's losses, [rows]."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(logits, batch["labels"], reduction="none").sum(1)


OBJECTIVE = MultiLabel()
