"""What a task is: which model class, which examples, and how they become batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from peftctl.example import Example, RowFault, Turn
from peftctl.text.tokens import Encoded

Batch = Mapping[str, Any]
# An example's rows, or why it has none. Most have one; a chat whose template rewrites its history has more.
EncodedExample = list[Encoded] | RowFault


@dataclass(frozen=True)
class Layout:
    """How rows become one tensor: padded to the longest, or ``packed`` end to end; ``pad_id`` fills what is padded.

    Packed rows are followed by a row of filling up to a multiple of ``multiple`` tokens: what products of a new shape
    need is prepared, and kept, for every shape, and multiples are what matrix units take.
    ``types``: the model takes token_type_ids. ``slices_logits``: its forward takes ``logits_to_keep``. ``head``: where
    its output head can be applied apart from it (see ``model.head``), else None. ``virtual`` tokens stand before each
    row in what the model gives. ``tokens``: what one forward pass may take, where a task has to see to that itself.
    """

    pad_id: int
    slices_logits: bool = False
    packed: bool = False
    multiple: int = 1
    head: Any = None
    virtual: int = 0
    types: bool = False
    tokens: int = 0


KEPT = "kept"


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
    def pipeline(self) -> str:
        """The hub's word for what its models do, "" where it has none."""

    @property
    def pooling(self) -> str:
        """How a text's vector is made of its tokens', "" where its models make none."""

    @property
    def accepts(self) -> tuple[type[Example], ...]:
        """The kinds of example it learns from."""

    @property
    def objective(self) -> str:
        """What it lowers unless the recipe says otherwise."""

    @property
    def head(self) -> bool:
        """Whether its model has a head that may be new: what of it the checkpoint lacks is trained whole and saved."""

    @property
    def packs(self) -> bool:
        """Whether rows may stand end to end in one, where the model allows it."""

    @property
    def generates(self) -> bool:
        """Whether its model writes text."""

    @property
    def uses(self) -> tuple[str, ...]:
        """Which settings of the recipe's section ``task`` have an effect on it, beside its name."""

    @property
    def classes(self) -> bool:
        """Whether ``outputs`` are logits, of tokens or classes, along the last axis."""

    @property
    def chats(self) -> bool:
        """Whether what it is asked may be messages, in the tokenizer's chat template."""

    def prompt(self, asked: str | Sequence[Turn], tokenizer: Any) -> list[int]:
        """The ids of what the model is to answer, where the task ``generates``."""

    def asked(self, example: Example, tokenizer: Any) -> tuple[list[int], str] | None:
        """The ids of what an example asks, and the text it has as the answer; None where it asks nothing."""

    def written(self, pairs: Sequence[tuple[str, str]]) -> Mapping[str, float]:
        """Metrics of texts, each written and as it should be, where the task ``generates``."""

    @property
    def problems(self) -> tuple[str, ...]:
        """What ``task.problem`` may be, if that has an effect."""

    @property
    def overlong(self) -> str:
        """What is done with rows that are too long where the recipe does not say: see data.overlong."""

    @property
    def ways(self) -> tuple[str, ...]:
        """What can be done with them at all."""

    def asks_rows(self, settings: Any) -> tuple[str, ...]:
        """Which settings that section leaves open follow from the training rows alone."""

    def of(self, settings: Any) -> Task:
        """The task as the recipe's section ``task`` has it, with its labels and the like."""

    def decide(self, settings: Any, examples: Sequence[Example]) -> Mapping[str, Any]:
        """What that section is where the recipe leaves it open. Raises DataError. ``examples`` of training are there
        where it ``asks_rows``."""

    def unfit(self, config: Any, tokenizer: Any) -> str:
        """Why a model of ``config`` cannot be asked what the task asks with rows of the tokenizer, or ""."""

    def check(self, examples: Sequence[Example]) -> list[str]:
        """What is odd about the training examples, in words. Raises DataError where nothing can be learned."""

    @property
    def arguments(self) -> str:
        """What ``from_pretrained`` has to be told beside the folder, as code: ", num_labels=1" or ""."""

    def configure(self, config: Any) -> None:
        """Write what the head depends on into the model's config, before the model is made."""

    def probe(self, text: str) -> Example:
        """An example with ``text`` in it, to compare models by where there is no data."""

    @property
    def causal(self) -> bool:
        """Whether what a model says of a token must not depend on those after it: else it would see its answers."""

    @property
    def unused(self) -> tuple[str, ...]:
        """Parts of models, by name, that have no say in what the task asks of them: neither trained nor missed."""

    def model_class(self, config: Any = None) -> Any:
        """The transformers auto class that builds its model, of ``config`` if that matters."""

    def encode(self, examples: Sequence[Example], tokenizer: Any, learn: str = "assistant") -> list[EncodedExample]:
        """Each example as ids, of which ``learn`` says what is learned, or the reason why it cannot be encoded."""

    def learned(self, row: Encoded, tokenizer: Any) -> str:
        """What is learned of a row, in words; "" where it is tokens of the row itself."""

    def fit(self, row: Encoded, longest: int, how: str, tokenizer: Any) -> list[Encoded]:
        """The row if it has at most ``longest`` tokens, else what ``how`` (data.overlong) makes of it; [] for none."""

    def outputs(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """All that the model says of the rows in ``inputs``, as one float32 tensor, to compare models by."""

    @property
    def results(self) -> tuple[str, ...]:
        """Names, as transformers' outputs have them, of what a program that uses the model wants of a pass."""

    def result(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        """The tensors of ``results``, padding and all, of the rows in ``inputs``."""

    def collate(self, rows: Sequence[Encoded], layout: Layout) -> Batch:
        """Rows as arrays for the objective; ``tensors`` makes tensors of them."""

    def metrics(self, model: Any, batch: Batch) -> Mapping[str, Sequence[float]]:
        """Sums over each row of a batch, without gradients; keys are this task's own, ``loss`` among them. What is in
        ``kept`` is not added up, but handed to ``judge``."""

    def summarise(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        """Metrics of a data set from the added-up sums of its rows."""

    def judge(
        self, kept: Sequence[Any], rows: Sequence[Encoded], examples: Callable[[], Sequence[Example]]
    ) -> Mapping[str, Any]:
        """Metrics of a data set that are no sums over rows, from what ``metrics`` kept of each row; {} for none.

        ``examples``: what each row is of; the rows of one example share one and stand side by side.
        """
