"""What training lowers. To add one: a file here and a line in the table."""

from __future__ import annotations

from peftctl.objectives import (
    class_cross_entropy,
    contrastive,
    cosine_similarity,
    cross_entropy,
    multi_label,
    regression,
    seq2seq_cross_entropy,
    span_cross_entropy,
)
from peftctl.objectives.contract import Loss, Objective

OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        cross_entropy.OBJECTIVE,
        class_cross_entropy.OBJECTIVE,
        multi_label.OBJECTIVE,
        regression.OBJECTIVE,
        span_cross_entropy.OBJECTIVE,
        contrastive.OBJECTIVE,
        cosine_similarity.OBJECTIVE,
        seq2seq_cross_entropy.OBJECTIVE,
    )
}

__all__ = ["OBJECTIVES", "Loss", "Objective"]
