"""Causal attention over rows packed end to end: every row attends to itself alone.

On a CPU a row is taken in blocks of queries against all keys up to their own, as batched products:

    P = softmax(Q K^T)   O = P V
    dP = dO V^T   dS = P * (dP - rowsum(dP * P))   dQ = dS K   dK = dS^T Q   dV = P^T dO

Heads that share keys (grouped-query attention) are further rows of the same product. Probabilities are kept for the
backward pass where rows are short and made again where they are long. On CUDA, torch's variable-length attention.

A row's last block is rounded up to ``ALIGN`` queries. What it reads past the row's end is masked or thrown away, so
the products of rows of any length have few shapes: oneDNN prepares, and keeps, a program for every shape it meets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from peftctl.fast.linear import ALIGN

BLOCK = 128  # queries a product; what is computed of a row's upper triangle in vain is at most half a block wide
KEPT = 512  # longest row whose probabilities are kept: they grow with its square

Bounds = Sequence[int]


def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, out: Tensor) -> list[Tensor]:
    """Causal attention of each row, into ``out``. Returns the probabilities that are kept for the backward pass.

    ``q`` [key heads, queries a key head, room, width]; ``k`` (scaled), ``v`` [key heads, room, width], finite also
    behind the last row, where they need room for ``ALIGN`` more; ``out`` [key heads, queries a key head, tokens,
    width]. ``bounds``: where rows begin, and the end of the last.
    """
    kept: list[Tensor] = []
    for block in _blocks(bounds):
        shares = _shares(_queries(q, block), k, block)
        made = torch.bmm(shares, v.narrow(1, block.first, block.keys)).view(len(q), -1, block.size, q.shape[3])
        out.narrow(2, block.start, block.tokens).copy_(made.narrow(2, 0, block.tokens))
        if block.keep:
            kept.append(shares)
    return kept


def attend_backward(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, bounds: Bounds, kept: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of ``attend`` with respect to q (its dtype), the scaled k, and v (float32), with the same room."""
    dq = torch.empty_like(q)
    dk = torch.zeros(k.shape, dtype=torch.float32, device=k.device)
    dv = torch.zeros_like(dk)
    saved = iter(kept)
    for block in _blocks(bounds):
        queries, grads = _queries(q, block), _gradients(dout, block)
        shares = next(saved) if block.keep else _shares(queries, k, block)
        keys, values = k.narrow(1, block.first, block.keys), v.narrow(1, block.first, block.keys)
        dshares = torch.bmm(grads, values.transpose(1, 2))
        dscores = torch.ops.aten._softmax_backward_data(dshares, shares, -1, shares.dtype)
        made = torch.bmm(dscores, keys).view(len(q), -1, block.size, q.shape[3])
        dq.narrow(2, block.start, block.tokens).copy_(made.narrow(2, 0, block.tokens))
        dk.narrow(1, block.first, block.keys).add_(torch.bmm(dscores.transpose(1, 2), queries))
        dv.narrow(1, block.first, block.keys).add_(torch.bmm(shares.transpose(1, 2), grads))
    return dq, dk, dv


def with_room(x: Tensor, dim: int) -> Tensor:
    """A copy of ``x`` with room behind the last token, filled with zeros."""
    shape = list(x.shape)
    shape[dim] += ALIGN
    made = x.new_empty(shape)
    made.narrow(dim, 0, x.shape[dim]).copy_(x)
    made.narrow(dim, x.shape[dim], ALIGN).zero_()
    return made


@dataclass(frozen=True)
class _Block:
    """``tokens`` queries from ``start``, of a row that begins at ``first``; ``size`` with those past the row's end."""

    first: int
    start: int
    tokens: int
    keep: bool

    @property
    def size(self) -> int:
        return -(-self.tokens // ALIGN) * ALIGN

    @property
    def keys(self) -> int:
        return self.start - self.first + self.size


def _blocks(bounds: Bounds) -> Iterator[_Block]:
    for first, last in pairwise(bounds):
        for start in range(first, last, BLOCK):
            yield _Block(first, start, min(BLOCK, last - start), last - first <= KEPT)


def _queries(x: Tensor, block: _Block) -> Tensor:
    """The block's of all queries of a key head: [key heads, queries a key head * size, width]."""
    return x.narrow(2, block.start, block.size).reshape(len(x), -1, x.shape[3])


def _gradients(dout: Tensor, block: _Block) -> Tensor:
    """The block's as ``_queries`` lays them out, zero past the row's end: queries there have no part in anything."""
    if block.tokens == block.size:
        return _queries(dout, block)
    made = dout.new_zeros(*dout.shape[:2], block.size, dout.shape[3])
    made.narrow(2, 0, block.tokens).copy_(dout.narrow(2, block.start, block.tokens))
    return made.flatten(1, 2)


def _shares(queries: Tensor, k: Tensor, block: _Block) -> Tensor:
    """The block's probabilities, [key heads, queries a key head * size, keys]."""
    scores = torch.bmm(queries, k.narrow(1, block.first, block.keys).transpose(1, 2))
    triangle = _triangle(block.size, queries.shape[1] // block.size, queries.dtype, queries.device)
    scores.narrow(2, block.start - block.first, block.size).add_(triangle)
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
        q = with_room(query[0], 1).view(key_heads, -1, query.shape[2] + ALIGN, width)
        k, v = with_room(key[0], 1).mul_(scale), with_room(value[0], 1)
        out = query.new_empty(query.shape[2], *q.shape[:2], width)
        kept = attend(q, k, v, bounds, out.permute(1, 2, 0, 3))
        ctx.save_for_backward(q, k, v, *kept)
        ctx.bounds, ctx.scale = bounds, scale
        return out.view(1, query.shape[2], query.shape[1], width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        tokens = q.shape[2] - ALIGN
        dout = grads[0][0].reshape(tokens, *q.shape[:2], q.shape[3]).permute(1, 2, 0, 3)
        dq, dk, dv = attend_backward(dout, q, k, v, ctx.bounds, kept)
        dq, dk, dv = dq.flatten(0, 1)[:, :tokens], dk[:, :tokens].mul_(ctx.scale), dv[:, :tokens]
        return dq[None], dk.to(k.dtype)[None], dv.to(v.dtype)[None], None, None


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
