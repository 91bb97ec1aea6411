"""Next-token cross-entropy over the learned tokens.

    loss = sum_i w_i * -log softmax(logits_i)[target_i]  /  sum_i w_i

Both sums run over the shifted targets of the whole optimizer step. transformers' own ``outputs.loss`` is not
used: it is a mean over one micro-batch, and some heads ignore the count they are handed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.objectives.contract import Loss


@dataclass(frozen=True)
class CrossEntropy:
    name: str = "cross_entropy"
    splittable: bool = True

    def count(self, row: Any) -> float:
        """The weight of the row's targets; its first token is a target of nothing."""
        return float(sum(row.weights[1:]))

    def step(self, model: Any, batch: Mapping[str, Any]) -> Loss:
        """``batch``: ``inputs`` for the model's forward, ``targets`` and ``weights`` [rows, positions].

        Logits are asked for at the ``positions`` that some row learns from, where the model can give just those,
        and turned to fp32 before the softmax.
        """
        from torch.nn.functional import cross_entropy

        logits = model(**batch["inputs"]).logits
        if logits.shape[1] != batch["targets"].shape[1]:
            logits = logits[:, batch["positions"]]
        losses = cross_entropy(logits.float().flatten(0, 1), batch["targets"].flatten(), reduction="none").view_as(
            batch["weights"]
        )
        return Loss((losses * batch["weights"]).sum(), float(batch["count"]))


OBJECTIVE = CrossEntropy()
