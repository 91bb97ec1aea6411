"""Encoded rows as tensors on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftctl.tasks import Batch, Task
from peftctl.text.tokens import Encoded


@dataclass(frozen=True)
class Collator:
    """``slices_logits``: the model can give logits for chosen positions alone."""

    task: Task
    tokenizer: Any
    slices_logits: bool
    device: Any

    def __call__(self, rows: Sequence[Encoded]) -> Batch:
        from accelerate.utils import send_to_device

        batch = self.task.collate(rows, pad_id(self.tokenizer), slices_logits=self.slices_logits)
        moved: Batch = send_to_device(batch, self.device)
        return moved


def pad_id(tokenizer: Any) -> int:
    """An id to fill rows with. Any will do: what is padded is masked by place, never by id."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
