"""A task's metrics over held-out rows, added up batch by batch so that no logits are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from peftctl.data.batches import micro_batches
from peftctl.data.collate import Collator
from peftctl.data.encode import Rows


def evaluate(model: Any, rows: Rows, collate: Collator, tokens: int) -> Mapping[str, float]:
    """The task's metrics over ``rows``, at most ``tokens`` tokens at a time. Dropout is off; no state changes."""
    import torch

    task = collate.task
    sums: Counter[str] = Counter()
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for group in micro_batches([len(row) for row in rows.encoded], tokens):
            sums.update(task.metrics(model, collate([rows.encoded[index] for index in group])))
    model.train(was_training)
    return task.summarise(sums)
