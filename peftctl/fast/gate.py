"""The gated unit between a feed-forward block's two products: silu(g) * u. Shazeer 2020, https://arxiv.org/abs/2002.05202"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from peftctl.fast.linear import Group
from peftctl.fast.tiles import compiled


def gated(both: Tensor, group: Group, *, compile: bool = False) -> Tensor:
    """``both`` [tokens, 2 * width], g beside u, to silu(g) * u, written into the room of ``group``, which reads it."""
    made: Tensor = _Gated.apply(both, group, compile)
    return made


def _forward(out: Tensor, g: Tensor, u: Tensor) -> None:
    out.copy_(silu(g) * u)


def _backward(of_g: Tensor, of_u: Tensor, dh: Tensor, g: Tensor, u: Tensor) -> None:
    wide, share = dh.float(), torch.sigmoid(g.float())
    activated = g * share
    of_g.copy_(wide * u * (share + activated * (1 - share)))
    of_u.copy_(wide * activated)


class _Gated(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    @staticmethod
    def forward(ctx: Any, both: Tensor, group: Group, compile: bool) -> Tensor:
        g, u = both.chunk(2, dim=-1)
        room = group.room(len(both), both)
        out = room[:, : group.inputs]
        ctx.compile = compile
        if compile:
            compiled(_forward)(out, g, u)
            ctx.save_for_backward(both)
        else:
            activated = silu(g)
            torch.mul(activated, u, out=out)
            ctx.save_for_backward(both, activated)
        return room

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        both, *rest = ctx.saved_tensors
        g, u = both.chunk(2, dim=-1)
        dh = grads[0][:, : g.shape[1]]
        out = torch.empty_like(both)
        of_g, of_u = out.chunk(2, dim=-1)
        if ctx.compile:
            compiled(_backward)(of_g, of_u, dh, g, u)
        else:
            torch.mul(dh, rest[0], out=of_u)
            torch.ops.aten.silu_backward.grad_input(dh * u, g, grad_input=of_g)
        return out, None, None
