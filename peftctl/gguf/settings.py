"""A model's sizes by GGUF's keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from peftctl.gguf.families import Family
from peftctl.gguf.rotary import Rotary

WINDOWED = "sliding_attention"


def head_size(config: Any) -> int:
    """Numbers in an attention head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def settings(config: Any, kind: Family, positions: Rotary, note: Callable[[str], None]) -> dict[str, Any]:
    """Every setting that llama.cpp reads of a model of this ``kind``, without the architecture's name before it."""
    size = head_size(config)
    found: dict[str, Any] = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads or config.num_attention_heads,
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "vocab_size": config.vocab_size,
        **positions.settings,
    }
    found |= _window(config, kind, note)
    return found | kind.more(config)


def _window(config: Any, kind: Family, note: Callable[[str], None]) -> dict[str, Any]:
    """Settings for layers that see only so many tokens back. Where llama.cpp has no windows for this kind of model, the
    context is no longer than the window: within it the two are the same."""
    window = getattr(config, "sliding_window", None)
    layers = getattr(config, "layer_types", None)
    seen = [each == WINDOWED for each in layers] if layers else [window is not None] * config.num_hidden_layers
    if window is None or not any(seen):
        return {}
    if kind.windows:
        return {"attention.sliding_window": window, "attention.sliding_window_pattern": seen}
    if window >= config.max_position_embeddings:
        return {}
    note(
        f"{config.model_type} attends to {window} tokens back, and llama.cpp to all: the file says that its context is "
        f"{window} tokens, within which the two are the same"
    )
    return {"context_length": window}
