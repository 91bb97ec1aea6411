"""Cross-entropy of one class a row, or one a token.

loss = sum_i -log softmax(logits_i)[label_i] / rows (or labelled tokens)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.objectives.contract import Loss, of_rows, own
from peftctl.text.tokens import IGNORED


@dataclass(frozen=True)
class ClassCrossEntropy:
    name: str = "class_cross_entropy"
    splittable: bool = True

    def count(self, row: Any) -> float:
        return float(row.supervised)

    def step(self, model: Any, batch: Mapping[str, Any], *, by_row: bool = False) -> Loss:
        """``labels`` [rows, 1], or [rows, length] with IGNORED where there is none."""
        losses = self.each(self.logits(model, batch["inputs"]), batch)
        return of_rows(losses, batch, by_row=by_row, each=(batch["labels"] != IGNORED).sum(1))

    def logits(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """[rows, labels], or [rows, length, labels] where the model says something of every token; float32."""
        logits = model(**inputs).logits.float()
        return logits if logits.dim() == 2 else own(logits, inputs)

    def each(self, logits: Any, batch: Mapping[str, Any]) -> Any:
        """The sum of each row's losses, [rows]."""
        from torch.nn.functional import cross_entropy

        labels = batch["labels"].long()
        if logits.dim() == 2:  # one class a row
            logits = logits[:, None]
        losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return losses.reshape(labels.shape).sum(1)


OBJECTIVE = ClassCrossEntropy()
