"""A task's metrics over rows, summed batch by batch so that no logits are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from peftctl.data.collate import Collator
from peftctl.tasks import KEPT, Task
from peftctl.text.tokens import Encoded


def evaluate(model: Any, rows: Sequence[Encoded], collate: Collator) -> list[dict[str, Any]]:
    """The task's sums over each of ``rows``. Dropout is off; no state changes.

    Packed rows are only right where attention knows where they begin, so it is told here, whoever calls: some models
    would else see one long row, and say nothing.
    """
    import torch

    from peftctl.model.attention import packed_attention

    of_rows: list[dict[str, Any]] = [{} for _ in rows]
    was_training = model.training
    model.eval()
    with torch.no_grad(), packed_attention(_base(model)) if collate.layout.packed else nullcontext():
        for group in collate.groups(rows):
            sums = collate.task.metrics(model, collate([rows[index] for index in group]))
            for place, index in enumerate(group):
                of_rows[index] = {name: values[place] for name, values in sums.items()}
    model.train(was_training)
    return of_rows


def _base(model: Any) -> Any:
    """transformers' model within a peft model, whatever Accelerate has put around it."""
    from accelerate.utils import extract_model_from_parallel

    return extract_model_from_parallel(model).get_base_model()


def summarise(task: Task, of_rows: Sequence[Mapping[str, Any]]) -> Mapping[str, float]:
    """The task's metrics of a data set, from the sums over its rows."""
    sums: Counter[str] = Counter()
    for row in of_rows:
        sums.update({name: value for name, value in row.items() if name != KEPT})
    return task.summarise(sums)
