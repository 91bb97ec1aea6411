"""Cross-entropy from hidden states and the output head's weight, some tokens at a time.

    loss_i = log sum_v exp(h_i . W_v) - h_i . W_target(i)

The logits of a micro-batch are never there at once, and the gradient with respect to the hidden states is formed
while a chunk's probabilities are at hand:  d loss_i / d h_i = (softmax(h_i W^T) - onehot(target_i)) W.
Products are in the weight's dtype; the softmax and the loss are float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from peftctl.fast.linear import ALIGN
from peftctl.fast.tiles import tiles

CHUNK = 256
TILE = 8


def weighted_sum(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, each: Tensor | None = None) -> Tensor:
    """sum_i weights_i * loss_i as a scalar, float32.

    ``hidden`` [tokens, width]; ``head`` [vocabulary, width], frozen; ``targets``, ``weights`` [tokens]; each token's
    loss goes into ``each`` [tokens], float32, where it is given.
    """
    total: Tensor = _WeightedSum.apply(hidden, head, targets, weights, each)
    return total


def scores(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's loss, float32, and whether its target is the likeliest, bool; both [tokens]. No gradient."""
    losses = torch.empty(len(hidden), device=hidden.device)
    right = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
    with torch.no_grad():
        for part in _chunks(len(hidden)):
            logits = (_rounded(hidden[part]) @ head.T)[: part.stop - part.start].float()
            chosen = logits.gather(1, targets[part, None]).squeeze(1)
            losses[part] = logits.logsumexp(dim=1) - chosen
            right[part] = logits.argmax(dim=1) == targets[part]
    return losses, right


def _chunks(tokens: int) -> Iterator[slice]:
    for start in range(0, tokens, CHUNK):
        yield slice(start, min(start + CHUNK, tokens))


def _rounded(hidden: Tensor) -> Tensor:
    """With zeros below, up to a multiple of ``ALIGN`` rows: few shapes, see ``attention``."""
    missing = -len(hidden) % ALIGN
    return nn.functional.pad(hidden, (0, 0, 0, missing)) if missing else hidden


class _WeightedSum(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, each: Tensor | None
    ) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        grads = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        size = min(CHUNK, -(-len(hidden) // ALIGN) * ALIGN)
        logits_of = torch.empty(size, len(head), dtype=head.dtype, device=head.device)
        for part in _chunks(len(hidden)):
            tokens = part.stop - part.start
            logits = torch.mm(_rounded(hidden[part]), head.T, out=logits_of[: -(-tokens // ALIGN) * ALIGN])
            losses = _shares_in_place(logits[:tokens], targets[part])
            total += (losses * weights[part]).sum()
            if each is not None:
                each[part] = losses
            if grads is not None:
                grads[part] = (logits @ head)[:tokens]
        if grads is not None:
            ctx.save_for_backward(grads.mul_(weights[:, None]))
        return total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grads,) = ctx.saved_tensors
        return grads * outer[0], None, None, None, None


def _shares_in_place(logits: Tensor, targets: Tensor) -> Tensor:
    """Each row's loss, float32 [tokens]; ``logits`` become softmax(logits) - onehot(targets), rounded once.

    On a CPU a few rows at a time, so that what is between reading and writing stays in the cache.
    """
    losses = torch.empty(len(logits), device=logits.device)
    for rows in tiles(logits, TILE):
        part, at = logits[rows], targets[rows, None]
        wide = part.to(torch.float32, copy=True)
        chosen = wide.gather(1, at)
        largest = wide.amax(dim=1, keepdim=True)
        mass = wide.sub_(largest).exp_().sum(dim=1, keepdim=True)
        losses[rows] = (mass.log() + largest - chosen).squeeze(1)
        wide.mul_(mass.reciprocal())
        wide.scatter_add_(1, at, torch.full_like(mass, -1))
        part.copy_(wide)
    return losses
