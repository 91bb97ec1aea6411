"""Cross-entropy of where an answer begins and where it ends.

loss = sum_i (-log softmax(s_i)[first_i] - log softmax(e_i)[last_i]) / 2 / rows        over the tokens of a row
(Devlin et al. 2019, section 4.2; padding is left out of the softmax, so a row's loss is a function of it alone)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.objectives.contract import Loss, of_rows, own


@dataclass(frozen=True)
class SpanCrossEntropy:
    name: str = "span_cross_entropy"
    splittable: bool = True

    def count(self, row: Any) -> float:
        return 1.0

    def step(self, model: Any, batch: Mapping[str, Any], *, by_row: bool = False) -> Loss:
        """``labels`` [rows, 2], the places of the first and the last token."""
        return of_rows(self.each(self.logits(model, batch["inputs"]), batch), batch, by_row=by_row)

    def logits(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """[rows, length, 2], float32: how likely an answer begins, and ends, at each token; -inf at padding."""
        import torch

        said = model(**inputs)
        padding = inputs["attention_mask"] == 0
        both = [own(logits, inputs).float() for logits in (said.start_logits, said.end_logits)]
        return torch.stack([logits.masked_fill(padding, -torch.inf) for logits in both], -1)

    def each(self, logits: Any, batch: Mapping[str, Any]) -> Any:
        """Each row's loss, [rows]; ``logits`` [rows, length, 2]."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, batch["labels"], reduction="none").mean(1)


OBJECTIVE = SpanCrossEntropy()
