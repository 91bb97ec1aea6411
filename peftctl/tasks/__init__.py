"""What a model can be trained to do. To add one: a file here and a line in the table."""

from __future__ import annotations

from typing import Any

from peftctl.tasks import causal_lm, feature_extraction, question_answering, seq2seq_lm, seq_cls, token_cls
from peftctl.tasks.contract import KEPT, Batch, EncodedExample, Layout, Task, tensors

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        causal_lm.TASK,
        seq2seq_lm.TASK,
        seq_cls.TASK,
        token_cls.TASK,
        question_answering.TASK,
        feature_extraction.TASK,
    )
}


def task_of(settings: Any) -> Task:
    """The task of a recipe's section ``task``, with its labels and the like."""
    return TASKS[settings.name].of(settings)


__all__ = ["KEPT", "TASKS", "Batch", "EncodedExample", "Layout", "Task", "task_of", "tensors"]
