"""Next-token cross-entropy over the learned tokens.

    loss = sum_i w_i * -log softmax(logits_i)[target_i]  /  sum_i w_i

Both sums run over the shifted targets of the whole optimizer step. transformers' own ``outputs.loss`` is not
used: it is a mean over one micro-batch, and some heads ignore the count they are handed.
"""

from __future__ import annotations

import math
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
        return math.fsum(row.weights[1:])

    def step(self, model: Any, batch: Mapping[str, Any], *, by_row: bool = False) -> Loss:
        """``batch`` as the task's ``collate`` makes it; where it brings the output head, no logits are kept."""
        import torch

        weights = batch["weights"]
        if batch["head"] is not None:
            hidden = _chosen(batch["head"].hidden(model, batch["inputs"]), batch)
            losses = torch.empty(len(hidden), device=hidden.device) if by_row else None
            total = batch["head"].weighted_sum(hidden, batch["targets"], weights, batch["weight"], losses)
        else:
            from torch.nn.functional import cross_entropy

            losses = cross_entropy(_logits(model, batch), batch["targets"], reduction="none")
            total = (losses * weights).sum()
        rows = _by_row(losses.detach(), batch) if by_row and losses is not None else None
        return Loss(total, float(batch["count"]), rows=rows)


def _by_row(losses: Any, batch: Mapping[str, Any]) -> Any:
    """The mean of the learned tokens' losses in each row, by weight."""
    import torch

    sums = torch.zeros(2, batch["rows"], dtype=torch.float64, device=losses.device)
    weights = batch["weights"].double()
    sums.index_add_(1, batch["owners"], torch.stack([losses.double() * weights, weights]))
    return sums[0] / sums[1]


def token_scores(model: Any, batch: Mapping[str, Any]) -> tuple[Any, Any]:
    """For each learned token -log softmax(logits)[target], float32, and whether the target is the likeliest."""
    if batch["head"] is not None:
        from peftctl.fast.loss import scores

        return scores(
            _chosen(batch["head"].hidden(model, batch["inputs"]), batch), batch["head"].weight, batch["targets"]
        )
    from torch.nn.functional import cross_entropy

    logits = _logits(model, batch)
    return cross_entropy(logits, batch["targets"], reduction="none"), logits.argmax(-1) == batch["targets"]


def _logits(model: Any, batch: Mapping[str, Any]) -> Any:
    """Logits of the learned tokens, [n, vocabulary], float32."""
    return _chosen(model(**batch["inputs"]).logits, batch).float()


def _chosen(outputs: Any, batch: Mapping[str, Any]) -> Any:
    """Of [rows, length, width] what belongs to learned tokens, [n, width].

    Where the model can give some columns alone (``logits_to_keep`` is among the inputs) it has given no others.
    """
    if "logits_to_keep" not in batch["inputs"]:
        outputs = outputs[:, batch["columns"]]
    flat = outputs.flatten(0, 1)
    return flat if len(flat) == len(batch["at"]) else flat[batch["at"]]


OBJECTIVE = CrossEntropy()
