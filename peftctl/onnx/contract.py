"""What a form is: the graphs that one kind of model becomes, and how they are run to say what the model says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from peftctl.onnx.session import Sessions
from peftctl.tasks import Task

# Names of axes, and of files, as Optimum has them.
BATCH, LENGTH = "batch_size", "sequence_length"
ROWS = {0: BATCH, 1: LENGTH}


@dataclass(frozen=True)
class Graph:
    """One file, NAME.onnx. ``compute`` makes ``outputs``, in this order, of a model and of ``inputs`` by name.

    ``inputs`` are examples, tensors, in the order in which the graph takes them; ``axes`` says of each which of its
    axes have any length, and what these are called.
    """

    name: str
    compute: Callable[[Any, Mapping[str, Any]], tuple[Any, ...]]
    inputs: Mapping[str, Any]
    axes: Mapping[str, Mapping[int, str]]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """Rows to compare by: ``inputs`` [rows, length], arrays by the names that transformers has for them, padded on the
    right where ``attention_mask`` is 0."""

    inputs: Mapping[str, Any]

    @property
    def ids(self) -> Any:
        return self.inputs["input_ids"]

    @property
    def mask(self) -> Any:
        return self.inputs["attention_mask"]

    @property
    def shape(self) -> tuple[int, int]:
        rows, length = self.ids.shape
        return int(rows), int(length)


class Form(Protocol):
    """One kind of model. ``wanted`` and ``found`` have the same names and shapes."""

    @property
    def copies(self) -> int:
        """In how many files a weight may be."""

    def graphs(self, model: Any, task: Task, case: Case) -> Sequence[Graph]:
        """The files it takes; ``case`` is what they are traced with."""

    def wanted(self, model: Any, task: Task, case: Case) -> Mapping[str, Any]:
        """What torch computes."""

    def found(self, files: Sessions, case: Case) -> Mapping[str, Any]:
        """What the files compute."""

    def by_token(self, files: Sessions) -> Sequence[str]:
        """Which of that is [rows, length, ...], so that it means nothing where a case is padded."""

    def greedy(self, files: Sessions, prompt: Sequence[int], start: int, stops: Sequence[int], most: int) -> list[int]:
        """The likeliest token each time, with the files alone, until one of ``stops`` or ``most`` are written.
        ``start``: what a decoder that reads another text begins with."""
