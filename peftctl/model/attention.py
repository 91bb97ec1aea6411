"""Attention for packed rows under a name of its own, known to transformers.

transformers gives an attention it does not know no mask at all, so padded rows would attend to padding. Under this
name only packed batches are run; anything else is refused here, never computed without its mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NAME = "peftctl_packed"
# Beyond these arguments attention is of a kind that the kernel has not.
UNKNOWN = ("softcap", "s_aux", "position_bias", "relative_position")


class NotPackable(Exception):
    """What the kernel for packed rows cannot compute. Its text is the reason."""


@contextmanager
def packed_attention(model: Any) -> Iterator[None]:
    """Within this context the transformers model ``model`` takes packed batches, and nothing else."""
    _register()
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*_: Any, **__: Any) -> None:
    """Packed rows need none: where they begin and end says who sees whom."""


def _attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None,
    dropout: float = 0.0, **settings: Any,
) -> tuple[Any, None]:  # fmt: skip
    from peftctl.fast.attention import packed

    bounds, longest = settings.get("cu_seq_lens_q"), settings.get("max_length_q")
    if bounds is None or longest is None or attention_mask is not None or query.shape[2] != key.shape[2]:
        raise NotPackable("its attention is not told where the rows begin")
    odd = [name for name in UNKNOWN if settings.get(name) is not None]
    if odd:
        raise NotPackable(f"its attention has {odd[0]}")
    if dropout or not getattr(module, "is_causal", True) or settings.get("is_causal") is False:
        raise NotPackable("its attention has dropout" if dropout else "its attention is not causal")
    window = settings.get("sliding_window")
    if window is not None and longest > window:
        raise NotPackable(f"its attention sees {window} tokens, and rows are longer")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # Where norms are trained in float32, positions turn queries and keys into it; autocast would bring them back.
    query, key = query.to(value.dtype), key.to(value.dtype)
    return packed(query, key, value, bounds, longest, scale), None
