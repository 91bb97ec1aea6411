"""Linear layers that share an input, each a frozen weight with or without a low-rank update, as one product.

    y_i = x W_i^T + b_i + s_i (x A_i^T) B_i^T

The weights stand below each other in one matrix, and the updates' B beside them as further columns:

    y = [x | x A^T] [W | s B]^T        W [outputs, inputs]   A [ranks, inputs]   B [outputs, ranks], block diagonal

so the updates cost next to nothing on top of the frozen product, forward and backward. A and B stay float32
parameters; small copies in the weights' dtype take part in the products. Gradients reach A and B in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# The matrix units take 32 numbers of the inner dimension at a time: other widths fall off their fast path.
ALIGN = 32


@dataclass(frozen=True)
class Adapted:
    """A frozen linear layer and its low-rank update (``methods.LowRank``), or None."""

    base: nn.Linear
    update: Any


class Group:
    """Layers that read the same input. Their weights become views of one matrix; ``release`` undoes that."""

    def __init__(self, layers: Sequence[Adapted]) -> None:
        first = layers[0].base.weight
        self.layers = tuple(layers)
        self.inputs = int(first.shape[1])
        self.splits = tuple(int(layer.base.weight.shape[0]) for layer in layers)
        self.updates = tuple(layer.update for layer in layers if layer.update is not None)
        self.parameters = tuple(p for update in self.updates for p in (update.down, update.up))
        rank = sum(update.down.shape[0] for update in self.updates)
        self.extra = -(-rank // ALIGN) * ALIGN
        outputs = sum(self.splits)
        self.weight = first.new_zeros(outputs, self.inputs + self.extra)
        self.down = first.new_zeros(self.extra, self.inputs)
        self.bias = None
        if any(layer.base.bias is not None for layer in layers):
            biases = [
                layer.base.bias if layer.base.bias is not None else first.new_zeros(size)
                for layer, size in zip(layers, self.splits, strict=True)
            ]
            self.bias = torch.cat([bias.detach() for bias in biases])
        # Where each update stands: its rows of ``weight``, and its columns behind the inputs.
        self.blocks: list[tuple[slice, slice]] = []
        row = column = 0
        for layer, size in zip(layers, self.splits, strict=True):
            rows = slice(row, row + size)
            self.weight[rows, : self.inputs] = layer.base.weight.detach()
            layer.base.weight.data = self.weight[rows, : self.inputs]
            if layer.update is not None:
                width = int(layer.update.down.shape[0])
                self.blocks.append((rows, slice(column, column + width)))
                column += width
            row += size

    def release(self) -> None:
        """Give every layer a weight of its own again."""
        for layer in self.layers:
            layer.base.weight.data = layer.base.weight.data.contiguous()

    def refresh(self) -> None:
        """Take over the parameters' present values. Cheap beside a forward pass, so it happens in every one."""
        with torch.no_grad():
            for update, (rows, columns) in zip(self.updates, self.blocks, strict=True):
                self.down[columns] = update.down
                torch.mul(update.up, update.scale, out=self._up(rows, columns))

    def _up(self, rows: slice, columns: slice) -> Tensor:
        return self.weight[rows, self.inputs + columns.start : self.inputs + columns.stop]

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` [..., inputs] to the layers' outputs side by side, [..., sum of outputs]."""
        flat = x.reshape(-1, self.inputs)
        made: Tensor = _Product.apply(self, flat, False, *self.parameters)
        return made.view(*x.shape[:-1], made.shape[-1])

    def of_wide(self, wide: Tensor) -> Tensor:
        """The same for an input that was written into ``room``: [rows, inputs + extra], which saves a copy."""
        made: Tensor = _Product.apply(self, wide, True, *self.parameters)
        return made

    def room(self, rows: int, like: Tensor) -> Tensor:
        """Uninitialised, [rows, inputs + extra]: the first columns are for the input, the others are the group's."""
        return like.new_empty(rows, self.inputs + self.extra)


class _Product(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    @staticmethod
    def forward(ctx: Any, group: Group, x: Tensor, is_wide: bool, *parameters: Tensor) -> Tensor:
        wide = x
        if group.extra:
            group.refresh()
            if not is_wide:
                wide = group.room(len(x), x)
                wide[:, : group.inputs] = x
            torch.mm(wide[:, : group.inputs], group.down.T, out=wide[:, group.inputs :])
        ctx.group, ctx.is_wide = group, is_wide
        ctx.save_for_backward(wide)
        return torch.nn.functional.linear(wide, group.weight, group.bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        group: Group = ctx.group
        (wide,) = ctx.saved_tensors
        dx = None
        if ctx.needs_input_grad[1]:
            wide_grad = dy @ group.weight
            down_grad, dx = wide_grad[:, group.inputs :], wide_grad[:, : group.inputs]
            if group.extra:
                dx.addmm_(down_grad, group.down)
            if ctx.is_wide:
                dx = wide_grad
        else:
            down_grad = dy @ group.weight[:, group.inputs :]
        found: list[Tensor | None] = []
        if group.extra:
            of_down = down_grad.T @ wide[:, : group.inputs]
            # The narrow side is the one to turn: dy.T would be written out in full.
            of_up = (wide[:, group.inputs :].T.contiguous() @ dy).T
            for update, (rows, columns) in zip(group.updates, group.blocks, strict=True):
                found += [of_down[columns].float(), of_up[rows, columns].float() * update.scale]
        return None, dx, None, *found
