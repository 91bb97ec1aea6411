"""Encoded rows as tensors on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftctl.data.batches import micro_batches
from peftctl.tasks import Batch, Layout, Task
from peftctl.text.tokens import Encoded


@dataclass(frozen=True)
class Collator:
    """``layout`` says how rows become one tensor, ``tokens`` how many may be in one forward pass."""

    task: Task
    tokenizer: Any
    layout: Layout
    tokens: int
    device: Any

    def __call__(self, rows: Sequence[Encoded]) -> Batch:
        from accelerate.utils import send_to_device

        batch = dict(self.task.collate(rows, self.layout))
        head = batch.pop("head", None)
        moved: Batch = {**send_to_device(batch, self.device), "head": head}
        return moved

    def groups(self, rows: Sequence[Encoded]) -> list[list[int]]:
        """The micro-batches of ``rows``, as lists of indices."""
        return micro_batches([len(row) for row in rows], self.tokens, packed=self.layout.packed)


def pad_id(tokenizer: Any) -> int:
    """An id to fill rows with. Any will do: what is padded is masked by place, never by id."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
