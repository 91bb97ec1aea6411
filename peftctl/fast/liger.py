"""Liger's fused linear cross-entropy on CUDA, where the package is installed and gives what ``loss`` gives.

It never holds the logits of more than a chunk either, and does it in one Triton kernel. Hsu et al. 2024,
https://arxiv.org/abs/2410.10989. It knows one weight for all tokens only.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from peftctl.fast import loss
from peftctl.fast.equal import random, same

TOKENS = 40

Sum = Callable[[Tensor, Tensor, Tensor], Tensor]


def fused_sum(head: Tensor) -> Sum | None:
    """sum_i loss_i of hidden states, head and targets; None where there is no such kernel, or it gives another."""
    if head.device.type != "cuda" or find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    kernel = LigerFusedLinearCrossEntropyLoss(reduction="sum")

    def fused(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        made: Tensor = kernel(weight, hidden, targets)
        return made

    return fused if _equal(fused, head) else None


def _equal(fused: Sum, head: Tensor) -> bool:
    hidden = random(head, TOKENS, head.shape[1])
    targets = torch.arange(TOKENS, device=head.device) * 7919 % len(head)
    ones = torch.ones(TOKENS, device=head.device)

    def plain(hidden: Tensor) -> Any:
        return loss.weighted_sum(hidden, head, targets, ones)[None]

    return same(plain, lambda hidden: fused(hidden, head, targets)[None], (hidden,), (), {})
