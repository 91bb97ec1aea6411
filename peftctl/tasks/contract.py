"""What a task is: which model class, which examples, and how they become batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from peftctl.example import Example, RowFault
from peftctl.text.tokens import Encoded

Batch = Mapping[str, Any]
# An example's rows, or why it has none. Most have one; a chat whose template rewrites its history has more.
EncodedExample = list[Encoded] | RowFault


@dataclass(frozen=True)
class Layout:
    """How rows become one tensor: padded to the longest, or ``packed`` end to end; ``pad_id`` fills what is padded.

    Packed rows are followed by a row of filling up to a multiple of ``multiple`` tokens: what products of a new shape
    need is prepared, and kept, for every shape, and multiples are what matrix units take.
    ``slices_logits``: the model's forward takes ``logits_to_keep``. ``head``: where its output head can be applied
    apart from it (see ``model.head``), else None. ``virtual`` tokens stand before each row in what the model gives.
    """

    pad_id: int
    slices_logits: bool = False
    packed: bool = False
    multiple: int = 1
    head: Any = None
    virtual: int = 0


def tensors(batch: Batch) -> Batch:
    """The batch with a tensor, in host memory and sharing it, for every array."""
    import numpy as np
    import torch
    from torch.utils._pytree import tree_map_only

    made: Batch = tree_map_only(np.ndarray, torch.from_numpy, dict(batch))
    return made


class Task(Protocol):
    """One of PEFT's task types."""

    @property
    def name(self) -> str:
        """The word for it in a recipe."""

    @property
    def peft_type(self) -> str:
        """PEFT's name for it."""

    @property
    def accepts(self) -> tuple[type[Example], ...]:
        """The kinds of example it learns from."""

    @property
    def objective(self) -> str:
        """What it lowers unless the recipe says otherwise."""

    @property
    def causal(self) -> bool:
        """Whether what a model says of a token must not depend on those after it: else it would see its answers."""

    def model_class(self) -> Any:
        """The transformers auto class that builds its model."""

    def encode(self, examples: Sequence[Example], tokenizer: Any, learn: str = "assistant") -> list[EncodedExample]:
        """Each example as ids, of which ``learn`` says what is learned, or the reason why it cannot be encoded."""

    def collate(self, rows: Sequence[Encoded], layout: Layout) -> Batch:
        """Rows as arrays for the objective; ``tensors`` makes tensors of them."""

    def metrics(self, model: Any, batch: Batch) -> Mapping[str, Sequence[float]]:
        """Sums over each row of a batch, without gradients; keys are this task's own, ``loss`` among them."""

    def summarise(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        """Metrics of a data set from the added-up sums of its rows."""
