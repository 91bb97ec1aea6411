"""What a model makes of texts as vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftctl.objectives.contract import own

MEAN, FIRST, LAST = "mean", "cls", "last"
POOLINGS = (MEAN, FIRST, LAST)


def embed(model: Any, passes: Sequence[Mapping[str, Any]], pooling: str, *, again: bool = True) -> Any:
    """[texts, width], float32, of length 1 each, of the texts in ``passes`` end to end.

    Where there are several passes and a gradient is wanted, what one needs for it is made ``again`` on the way back and
    not kept, dropout included: memory is that of one pass (Gao et al. 2021, arXiv:2101.06983), the gradient the same.
    """
    import torch
    from torch.utils.checkpoint import checkpoint

    if len(passes) == 1 or not again or not torch.is_grad_enabled():
        return torch.cat([_pooled(model, inputs, pooling) for inputs in passes])
    return torch.cat([checkpoint(_pooled, model, inputs, pooling, use_reentrant=False) for inputs in passes])


def _pooled(model: Any, inputs: Mapping[str, Any], pooling: str) -> Any:
    hidden = own(model(**inputs).last_hidden_state, inputs).float()
    return pool(hidden, inputs["attention_mask"], pooling)


def pool(hidden: Any, mask: Any, pooling: str) -> Any:
    """[texts, width], of length 1 each: of ``hidden`` [texts, length, width], padded on the right where ``mask``
    [texts, length] is 0, the mean of a text's tokens, its first one, or its last."""
    import torch
    from torch.nn.functional import normalize

    if pooling == MEAN:
        vectors = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    else:
        at = torch.zeros_like(mask[:, 0]) if pooling == FIRST else mask.sum(1) - 1
        vectors = hidden[torch.arange(hidden.shape[0], device=hidden.device), at]
    return normalize(vectors, dim=-1)
