"""Encoded rows as tensors on a device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftctl.data.batches import micro_batches
from peftctl.tasks import Batch, Layout, Task, tensors
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
        return self.on_device(self.on_host(rows))

    def on_host(self, rows: Sequence[Encoded]) -> Batch:
        """The rows in host memory, for ``on_device``: pinned where they are to be copied to a GPU, else arrays.

        Only arrays: on a CPU this runs in a thread beside the training's, and torch's operators would bring up
        threads of their own there, beside which those that multiply matrices are put to sleep between two products.
        """
        batch = self.task.collate(rows, replace(self.layout, tokens=self.tokens))
        if self.device.type != "cuda":
            return batch
        import torch
        from torch.utils._pytree import tree_map_only

        pinned: Batch = tree_map_only(torch.Tensor, lambda tensor: tensor.pin_memory(), dict(tensors(batch)))
        return pinned

    def on_device(self, batch: Batch) -> Batch:
        """The same as tensors on the device, where the copy need not be waited for."""
        from accelerate.utils import send_to_device

        head = batch.get("head")
        moved: Batch = send_to_device(tensors({**batch, "head": None}), self.device, non_blocking=True)
        return {**moved, "head": head}

    def groups(self, rows: Sequence[Encoded], *, split: bool = True) -> list[list[int]]:
        """The micro-batches of ``rows``, as lists of indices; all of them in one where they must not be ``split``."""
        if not split:
            return [list(range(len(rows)))]
        return micro_batches([len(row) for row in rows], self.tokens, packed=self.layout.packed)


def plain_layout(tokenizer: Any) -> Layout:
    """Rows padded, and nothing else asked of the model."""
    return Layout(pad_id(tokenizer), types="token_type_ids" in tokenizer.model_input_names)


def pad_id(tokenizer: Any) -> int:
    """An id to fill rows with. Any will do: what is padded is masked by place, never by id."""
    return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0)
