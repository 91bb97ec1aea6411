"""Checks that training really trains: gradients of every trained tensor, and updates that are finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from peftctl.errors import DivergedError

GRADIENT_STEPS = 10
SKIPS_IN_A_ROW = 3


class GradientGuard:
    """After the first update every trained tensor has had a finite gradient; over the first ten, one not all zero.

    A tensor that gets none is trained by nothing: an adapter that the forward pass leaves out, or activation
    checkpointing that cuts the graph. A run shorter than two updates cannot show the second, since LoRA's A has
    no gradient while B is zero.
    """

    def __init__(self, named_parameters: Iterable[tuple[str, Any]], steps: int) -> None:
        self._silent = {name: parameter for name, parameter in named_parameters if parameter.requires_grad}
        self._last = min(GRADIENT_STEPS, steps)
        self._updates = 0
        if not self._silent:
            raise DivergedError("nothing is trained: no tensor takes gradients")

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it, as plain values."""
        return {"updates": self._updates, "silent": sorted(self._silent)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what ``state`` said of another."""
        self._updates = int(state["updates"])
        self._silent = {name: self._silent[name] for name in state["silent"] if name in self._silent}

    @property
    def watching(self) -> bool:
        return self._updates < self._last and bool(self._silent)

    def after_backward(self) -> None:
        """Look at the gradients of one update. Raises DivergedError naming the tensors that were left out."""
        self._updates += 1
        missing = [name for name, parameter in self._silent.items() if parameter.grad is None]
        if missing:
            raise DivergedError(_names("the backward pass does not reach", missing))
        self._silent = {name: parameter for name, parameter in self._silent.items() if not bool(parameter.grad.any())}
        if self._silent and self._updates == self._last and self._last > 1:
            raise DivergedError(_names(f"the gradient stayed zero for {self._last} updates of", list(self._silent)))


class SkipGuard:
    """Counts updates left out because a loss or gradient was not finite; the third in a row stops the run."""

    def __init__(self) -> None:
        self.total = 0
        self._in_a_row = 0

    def state(self) -> dict[str, int]:
        """What a checkpoint holds of it, as plain values."""
        return {"total": self.total, "in_a_row": self._in_a_row}

    def restore(self, state: Mapping[str, int]) -> None:
        """Go on from what ``state`` said of another."""
        self.total, self._in_a_row = state["total"], state["in_a_row"]

    def ok(self) -> None:
        self._in_a_row = 0

    def skipped(self, step: int) -> None:
        self.total += 1
        self._in_a_row += 1
        if self._in_a_row == SKIPS_IN_A_ROW:
            raise DivergedError(
                f"the loss or its gradient was not finite at steps {step - SKIPS_IN_A_ROW + 1} to {step}; "
                "nothing was published",
                hint="a lower train.learning_rate, a longer train.warmup_ratio or model.dtype: float32 may help",
            )


def _names(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{what} {', '.join(names[:5])}{more}; nothing was published"
