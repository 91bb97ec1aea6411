"""Causal attention over rows packed end to end: every row attends to itself alone.

On a CPU a row is taken in blocks of queries against all keys up to their own, as batched products:

    P = softmax(Q K^T)   O = P V
    dP = dO V^T   dS = P * (dP - rowsum(dP * P))   dQ = dS K   dK = dS^T Q   dV = P^T dO

Heads that share keys (grouped-query attention) are further rows of the same product. Probabilities are kept for the
backward pass where rows are short and made again where they are long. On CUDA, torch's variable-length attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from peftctl.fast.linear import Group
from peftctl.fast.tiles import tiles

BLOCK = 128  # queries a product; what is computed of a row's upper triangle in vain is at most half a block wide
KEPT = 1024  # longest row whose probabilities are kept: they grow with its square
TILE = 256

Bounds = Sequence[int]


def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, out: Tensor) -> list[Tensor]:
    """Causal attention of each row, into ``out``. Returns the probabilities that are kept for the backward pass.

    ``q``, ``out`` [key heads, queries a key head, tokens, width]; ``k`` (scaled), ``v`` [key heads, tokens, width].
    ``bounds``: where rows begin, and the end of the last.
    """
    kept: list[Tensor] = []
    for first, start, stop, keep in _blocks(bounds):
        shares = _shares(_queries(q, start, stop), k, first, start, stop)
        part = torch.bmm(shares, v.narrow(1, first, stop - first))
        out.narrow(2, start, stop - start).copy_(part.view(len(q), -1, stop - start, q.shape[3]))
        if keep:
            kept.append(shares)
    return kept


def attend_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, kept: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``attend`` with respect to q (its dtype), the scaled k, and v (float32)."""
    dq = torch.empty_like(q)
    dk = torch.zeros(k.shape, dtype=torch.float32, device=k.device)
    dv = torch.zeros_like(dk)
    saved = iter(kept)
    for first, start, stop, keep in _blocks(bounds):
        queries, grads = _queries(q, start, stop), _queries(dout, start, stop)
        shares = next(saved) if keep else _shares(queries, k, first, start, stop)
        keys, values = k.narrow(1, first, stop - first), v.narrow(1, first, stop - first)
        dshares = torch.bmm(grads, values.transpose(1, 2))
        dscores = torch.ops.aten._softmax_backward_data(dshares, shares, -1, shares.dtype)
        part = torch.bmm(dscores, keys).view(len(q), -1, stop - start, q.shape[3])
        dq.narrow(2, start, stop - start).copy_(part)
        dk.narrow(1, first, stop - first).add_(torch.bmm(dscores.transpose(1, 2), queries))
        dv.narrow(1, first, stop - first).add_(torch.bmm(shares.transpose(1, 2), grads))
    return dq, dk, dv


def _blocks(bounds: Bounds) -> Iterator[tuple[int, int, int, bool]]:
    """For every block of queries: its row's beginning, its own, its end, and whether its probabilities are kept."""
    for first, last in pairwise(bounds):
        for start in range(first, last, BLOCK):
            yield first, start, min(start + BLOCK, last), last - first <= KEPT


def _queries(x: Tensor, start: int, stop: int) -> Tensor:
    """Tokens ``start`` to ``stop`` of all queries of a key head: [key heads, queries a key head * tokens, width]."""
    return x.narrow(2, start, stop - start).reshape(len(x), -1, x.shape[3])


def _shares(queries: Tensor, k: Tensor, first: int, start: int, stop: int) -> Tensor:
    """The block's probabilities, [key heads, queries a key head * tokens, keys from ``first`` to ``stop``]."""
    scores = torch.bmm(queries, k.narrow(1, first, stop - first).transpose(1, 2))
    tokens = stop - start
    triangle = _triangle(tokens, queries.shape[1] // tokens, queries.dtype, queries.device)
    scores.narrow(2, start - first, tokens).add_(triangle)
    return torch.softmax(scores, dim=-1)


@lru_cache(maxsize=256)
def _triangle(tokens: int, queries: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-inf where a query would see a later token, else 0: [queries * tokens, tokens]."""
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril().repeat(queries, 1)
    return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))


class _Packed(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """Attention alone: q, k, v as transformers lays them out, [1, heads, tokens, width]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bounds: Bounds, scale: float) -> Tensor:
        key_heads, width = key.shape[1], query.shape[3]
        q = query[0].reshape(key_heads, -1, query.shape[2], width)
        k, v = key[0] * scale, value[0].contiguous()
        out = query.new_empty(query.shape[2], *q.shape[:2], width)
        kept = attend(q, k, v, bounds, out.permute(1, 2, 0, 3))
        ctx.save_for_backward(q, k, v, *kept)
        ctx.bounds, ctx.scale = bounds, scale
        return out.view(1, query.shape[2], query.shape[1], width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        dout = grads[0][0].reshape(q.shape[2], *q.shape[:2], q.shape[3]).permute(1, 2, 0, 3)
        dq, dk, dv = attend_backward(dout, q, k, v, ctx.bounds, kept)
        return dq.flatten(0, 1)[None], dk.mul_(ctx.scale).to(k.dtype)[None], dv.to(v.dtype)[None], None, None


def packed(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int, scale: float) -> Tensor:
    """Attention over packed rows: query [1, heads, tokens, width], key and value alike; to [1, tokens, heads, width].

    ``bounds`` [rows + 1], int32: where rows begin, and the end of the last; ``longest``: the longest row.
    """
    if query.is_cuda:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (each[0].transpose(0, 1).contiguous() for each in (query, key, value))
        grouped = query.shape[1] != key.shape[1]
        out: Any = varlen_attn(
            q, k, v, bounds, bounds, longest, longest, scale=scale, window_size=(-1, 0), enable_gqa=grouped
        )
        return out[None]
    made: Tensor = _Packed.apply(query, key, value, bounds.tolist(), scale)
    return made


class _Rotary(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    """Rotary positions and attention in one, from the projections' joint output to the output projection's input.

        y = x * cos + (x R) * sin        with R the half turn, x R = [-x2 | x1]

    The half turn is a product with a matrix of ones and zeros, which is exact and, on matrix units, the cheapest.
    """

    @staticmethod
    def forward(  # noqa: PLR0913 - autograd takes no containers
        ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor, bounds: Bounds, shape: tuple[int, int, int], scale: float,
        group: Group,
    ) -> Tensor:  # fmt: skip
        heads, key_heads, width = shape
        tokens, turned = len(qkv), heads + key_heads
        by_head = qkv.view(tokens, turned + key_heads, width).transpose(0, 1)
        turn = _half_turn(width, qkv.dtype, qkv.device)
        qk = qkv.new_empty(turned, tokens, width)
        for part in tiles(qkv, TILE):
            straight = by_head[:turned, part].contiguous()
            half_turned = (straight.view(-1, width) @ turn).view(straight.shape)
            qk[:, part] = straight.mul_(cos[part]).addcmul_(half_turned, sin[part])
        q, k = qk[:heads].view(key_heads, -1, tokens, width), qk[heads:].mul_(scale)
        v = by_head[turned:].contiguous()
        room = group.room(tokens, qkv)
        out = room[:, : heads * width].view(tokens, key_heads, -1, width).permute(1, 2, 0, 3)
        kept = attend(q, k, v, bounds, out)
        ctx.save_for_backward(qk, v, cos, sin, *kept)
        ctx.bounds, ctx.scale, ctx.shape = bounds, scale, shape
        return room

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        qk, v, cos, sin, *kept = ctx.saved_tensors
        heads, key_heads, width = ctx.shape
        tokens = qk.shape[1]
        q, k = qk[:heads].view(key_heads, -1, tokens, width), qk[heads:]
        dout = grads[0][:, : heads * width].view(tokens, key_heads, -1, width).permute(1, 2, 0, 3)
        dq, dk, dv = attend_backward(dout, q, k, v, ctx.bounds, kept)
        turn = _half_turn(width, q.dtype, q.device)
        dqkv = q.new_empty(tokens, heads + 2 * key_heads, width)
        by_head = dqkv.transpose(0, 1)
        dq, dk = dq.view(heads, tokens, width), dk.mul_(ctx.scale)
        for part in tiles(dqkv, TILE):
            dturned = torch.cat((dq[:, part], dk[:, part].to(q.dtype)))
            back = ((dturned * sin[part]).view(-1, width) @ turn).view(dturned.shape)
            by_head[: heads + key_heads, part] = dturned.mul_(cos[part]).sub_(back)  # R transposed is -R
        by_head[heads + key_heads :] = dv
        return dqkv.view(tokens, -1), None, None, None, None, None, None


def rotary(
    qkv: Tensor, cos: Tensor, sin: Tensor, bounds: Tensor, shape: tuple[int, int, int], scale: float, group: Group
) -> Tensor:
    """From queries, keys and values side by side to attention's output, written into the room of ``group``.

    ``qkv`` [tokens, (heads + 2 key heads) * width]; ``cos``, ``sin`` [tokens, width]; ``shape``: heads, key heads and
    width. Su et al. 2021, https://arxiv.org/abs/2104.09864
    """
    made: Tensor = _Rotary.apply(qkv, cos, sin, bounds.tolist(), shape, scale, group)
    return made


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
