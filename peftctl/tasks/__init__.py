"""What a model can be trained to do. To add one: a file here and a line in the table."""

from __future__ import annotations

from peftctl.tasks import causal_lm
from peftctl.tasks.contract import Batch, EncodedExample, Layout, Task, tensors

TASKS: dict[str, Task] = {task.name: task for task in (causal_lm.TASK,)}

__all__ = ["TASKS", "Batch", "EncodedExample", "Layout", "Task", "tensors"]
