"""A model whose matrices take no memory: each is one number, seen as if it were as many as there should be.

On the meta device PEFT would leave adapters there too, and some methods would then write what nobody trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def blank(model: Any, read: Callable[[str], Any]) -> None:
    """Give ``model``, which is on the meta device, parameters on the CPU: what ``read`` gives by name of those that
    have one dimension, and of the others blanks in float32, to which PEFT rounds no adapter."""
    import torch
    from torch import nn

    made: dict[int, Any] = {}
    for prefix, module in model.named_modules():
        for last, old in module.named_parameters(recurse=False):
            name = f"{prefix}.{last}" if prefix else last
            if id(old) not in made:
                value = read(name) if old.dim() < 2 else _blank(old.shape, torch.float32)
                made[id(old)] = nn.Parameter(value, requires_grad=False)
            module._parameters[last] = made[id(old)]


def is_blank(tensor: Any) -> bool:
    """Whether a tensor is one of those that hold nothing."""
    return tensor.dim() > 1 and tensor.numel() > 1 and not any(tensor.stride())


def clear(parameter: Any) -> None:
    """Let go of a parameter's values."""
    parameter.data = _blank(parameter.shape, parameter.dtype)


def _blank(shape: Any, dtype: Any) -> Any:
    import torch

    return torch.zeros((), dtype=dtype).expand(shape)
