"""RMSNorm, saving its input and one number a row. Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467

y = x / sqrt(mean(x^2) + eps) * (offset + w)         offset is 0, or 1 where the weight is stored so (Gemma)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from peftctl.fast.tiles import compiled, tiles

TILE = 256


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0, *, compile: bool = False) -> Tensor:
    """``x`` [..., width] normalised over its last dimension, in x's dtype. ``weight`` [width] is frozen."""
    # With an offset such models multiply in float32 and round once; without, they round before.
    gain = weight.float() + offset if offset else weight
    flat: Tensor = _RMSNorm.apply(x.reshape(-1, x.shape[-1]), gain, eps, compile)
    return flat.view(x.shape)


def _normed(x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = (norm.square() / x.shape[-1] + eps).rsqrt()
    normed = wide * scale
    return ((normed if gain.dtype == torch.float32 else normed.to(x.dtype)) * gain).to(x.dtype), scale


def _normed_backward(dy: Tensor, x: Tensor, scale: Tensor, gain: Tensor) -> Tensor:
    # With g = dy * gain:   dx = scale * g - x * scale^3 * mean(g * x)
    g, wide = (dy * gain).float(), x.float()
    share = (g * wide).sum(dim=-1, keepdim=True) * scale.pow(3) / -x.shape[-1]
    return torch.addcmul(g * scale, wide, share).to(x.dtype)


class _RMSNorm(torch.autograd.Function):  # type: ignore[misc]  # torch is untyped here
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float, compile: bool) -> Tensor:
        ctx.compile = compile
        if compile:
            out, scale = compiled(_normed)(x, gain, eps)
        else:
            out, scale = torch.empty_like(x), x.new_empty(len(x), 1, dtype=torch.float32)
            for part in tiles(x, TILE):
                out[part], scale[part] = _normed(x[part], gain, eps)
        ctx.save_for_backward(x, scale, gain)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (dy,) = grads
        x, scale, gain = ctx.saved_tensors
        if ctx.compile:
            return compiled(_normed_backward)(dy, x, scale, gain), None, None, None
        out = torch.empty_like(x)
        for part in tiles(x, TILE):
            out[part] = _normed_backward(dy[part], x[part], scale[part], gain)
        return out, None, None, None
