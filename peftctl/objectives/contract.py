"""What an objective is: the number that training lowers, as a sum and the count it is to be divided by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Loss:
    """``sum`` is a scalar tensor with a graph; ``count`` what it sums over. ``extras`` are sums to be logged.

    ``rows`` [rows], where it was asked for, is the mean loss of each row of the batch, without a graph.

    The loss of an optimizer step is the sum of its micro-batches' sums over the sum of their counts, so it does
    not depend on how the step was cut into micro-batches or dealt to processes.
    """

    sum: Any
    count: float
    extras: Mapping[str, float] = field(default_factory=dict)
    rows: Any = None


def of_rows(losses: Any, batch: Mapping[str, Any], *, by_row: bool, each: Any = 1) -> Loss:
    """The loss of a batch from the sums of its rows' losses, [rows], over ``each``, how many there are in a row."""
    return Loss(losses.sum(), float(batch["count"]), rows=losses.detach().double() / each if by_row else None)


def own(values: Any, inputs: Mapping[str, Any]) -> Any:
    """What a model says of the rows' own tokens, [rows, length, ...]: a method may have put others before them."""
    return values[:, values.shape[1] - inputs["attention_mask"].shape[1] :]


class Objective(Protocol):
    """A training objective."""

    @property
    def name(self) -> str:
        """The word for it in a recipe."""

    @property
    def splittable(self) -> bool:
        """Whether sums over micro-batches add up exactly to the sum over the batch."""

    def count(self, row: Any) -> float:
        """What an encoded row adds to the count, known before any forward pass."""

    def step(self, model: Any, batch: Mapping[str, Any], *, by_row: bool = False) -> Loss:
        """The forward pass and its loss, ``by_row`` too. ``batch`` is what the task's ``collate`` made."""
