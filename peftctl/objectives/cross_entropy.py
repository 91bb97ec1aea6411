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
        """``batch``: ``inputs`` for the model's forward; ``targets``, ``weights`` [rows, positions]; ``positions``."""
        losses = token_losses(target_logits(model, batch), batch)
        return Loss((losses * batch["weights"]).sum(), float(batch["count"]))


def target_logits(model: Any, batch: Mapping[str, Any]) -> Any:
    """Logits at the positions some row learns from, [rows, positions, vocabulary], float32.

    Where the model can give just those (``logits_to_keep`` is among the inputs) its head is applied nowhere else.
    """
    logits = model(**batch["inputs"]).logits
    if "logits_to_keep" not in batch["inputs"]:
        logits = logits[:, batch["positions"]]
    return logits.float()


def token_losses(logits: Any, batch: Mapping[str, Any]) -> Any:
    """-log softmax(logits)[target] at each position, [rows, positions], whatever its weight."""
    from torch.nn.functional import cross_entropy

    losses = cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none")
    return losses.view_as(batch["targets"])


OBJECTIVE = CrossEntropy()
