"""Rotary positions and packed attention in one, from the projections' joint output to the output projection's input.

    y = x * cos + (x R) * sin        with R the half turn, x R = [-x2 | x1]

Su et al. 2021, https://arxiv.org/abs/2104.09864
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from peftctl.fast.attention import Bounds, attend, attend_backward, packed, with_room
from peftctl.fast.linear import ALIGN, Group
from peftctl.fast.tiles import compiled, tiles

TILE = 256


def rotary(
    qkv: Tensor, turn: tuple[Tensor, Tensor], bounds: Tensor, shape: tuple[int, int, int], scale: float, group: Group,
    *, compile: bool = False,
) -> Tensor:  # fmt: skip
    """From queries, keys and values side by side to attention's output, written into the room of ``group``.

    ``qkv`` [tokens, (heads + 2 key heads) * width]; ``turn``: cos and sin, each [tokens, width]; ``shape``: heads, key
    heads and width.
    """
    made: Tensor = _Rotary.apply(qkv, *turn, bounds.tolist(), shape, scale, group, compile)
    return made


class _Rotary(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    @staticmethod
    def forward(  # noqa: PLR0913 - autograd takes no containers
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, bounds: Bounds, shape: tuple[int, int, int], scale: float,
        group: Group, compile: bool,
    ) -> Tensor:  # fmt: skip
        heads, key_heads, width = shape
        tokens, turned = len(qkv), heads + key_heads
        by_head = qkv.view(tokens, turned + key_heads, width).transpose(0, 1)
        qk = qkv.new_empty(turned, tokens + ALIGN, width)
        qk[:, tokens:] = 0
        (compiled(_turn) if compile else _turn_in_tiles)(qk[:, :tokens], by_head[:turned], cos, sin)
        q, k = qk[:heads].view(key_heads, -1, tokens + ALIGN, width), qk[heads:].mul_(scale)
        v = with_room(by_head[turned:], 1)
        room = group.room(tokens, qkv)
        out = room[:, : heads * width].view(tokens, key_heads, -1, width).permute(1, 2, 0, 3)
        kept = attend(q, k, v, bounds, out)
        ctx.save_for_backward(qk, v, cos, sin, *kept)
        ctx.bounds, ctx.scale, ctx.shape, ctx.compile = bounds, scale, shape, compile
        return room

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qk, v, cos, sin, *kept = ctx.saved_tensors
        heads, key_heads, width = ctx.shape
        tokens = qk.shape[1] - ALIGN
        q, k = qk[:heads].view(key_heads, -1, tokens + ALIGN, width), qk[heads:]
        dout = grads[0][:, : heads * width].view(tokens, key_heads, -1, width).permute(1, 2, 0, 3)
        dq, dk, dv = attend_backward(dout, q, k, v, ctx.bounds, kept)
        dqkv = q.new_empty(tokens, heads + 2 * key_heads, width)
        by_head = dqkv.transpose(0, 1)
        turn_back = compiled(_turn_back) if ctx.compile else _turn_back_in_tiles
        turn_back(
            by_head[: heads + key_heads], dq.view(heads, -1, width)[:, :tokens], dk[:, :tokens], cos, sin, ctx.scale
        )
        by_head[heads + key_heads :] = dv[:, :tokens]
        return dqkv.view(tokens, -1), None, None, None, None, None, None, None


def _turn_in_tiles(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """y into ``out``; both [heads, tokens, width].

    The half turn is a product with a matrix of ones and zeros, which is exact and, on matrix units, the cheapest.
    """
    turn = _half_turn(x.shape[2], x.dtype, x.device)
    for part in tiles(cos, TILE):
        straight = x[:, part].contiguous()
        half_turned = (straight.view(-1, x.shape[2]) @ turn).view(straight.shape)
        out[:, part] = straight.mul_(cos[part]).addcmul_(half_turned, sin[part])


def _turn_back_in_tiles(out: Tensor, dq: Tensor, dk: Tensor, cos: Tensor, sin: Tensor, scale: float) -> None:
    """The gradient of x, of queries and (scaled) keys below each other, into ``out``."""
    turn = _half_turn(dq.shape[2], dq.dtype, dq.device)
    for part in tiles(cos, TILE):
        turned = torch.cat((dq[:, part], (dk[:, part] * scale).to(dq.dtype)))
        back = ((turned * sin[part]).view(-1, dq.shape[2]) @ turn).view(turned.shape)
        out[:, part] = turned.mul_(cos[part]).sub_(back)  # R transposed is -R


def _turn(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    one, two = x.chunk(2, dim=-1)
    out.copy_(x.float() * cos.float() + torch.cat((-two, one), dim=-1).float() * sin.float())


def _turn_back(out: Tensor, dq: Tensor, dk: Tensor, cos: Tensor, sin: Tensor, scale: float) -> None:
    turned = torch.cat((dq.float(), dk * scale))
    one, two = (turned * sin.float()).chunk(2, dim=-1)
    out.copy_(turned * cos.float() + torch.cat((two, -one), dim=-1))


def rotary_varlen(
    qkv: Tensor, cos: Tensor, sin: Tensor, bounds: Tensor, longest: int, shape: tuple[int, int, int], scale: float
) -> Tensor:
    """The same on CUDA, [tokens, heads * width]: the rotation as plain products, then torch's attention."""
    heads, key_heads, width = shape
    sizes = (heads * width, key_heads * width, key_heads * width)
    query, key, value = (part.view(len(qkv), -1, width) for part in qkv.split(sizes, dim=1))
    c, s = cos[:, None], sin[:, None]

    def turned(x: Tensor) -> Tensor:
        one, two = x.chunk(2, dim=-1)
        return x * c + torch.cat((-two, one), dim=-1) * s

    q, k, v = (each.transpose(0, 1)[None] for each in (turned(query), turned(key), value))
    return packed(q, k, v, bounds, longest, scale).reshape(len(qkv), heads * width)


@lru_cache(maxsize=16)
def _half_turn(width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """R with x R = [-x2 | x1] for the halves of x: [width, width]."""
    half = torch.eye(width // 2, dtype=dtype, device=device)
    none = torch.zeros_like(half)
    return torch.cat((torch.cat((none, half), dim=1), torch.cat((-half, none), dim=1)))
