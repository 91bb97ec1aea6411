"""Positions: what a config says of rotary embeddings, as GGUF's settings and factors.

Sources: transformers, modeling_rope_utils.py; llama.cpp, src/llama-model.cpp (``load_hparams``, ``get_rope_factors``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.errors import UsageError

SAID = {"rope_theta", "rope_type", "type", "partial_rotary_factor"}
# What llama.cpp takes of each kind of scaling; another word in the config is one that it would not hear.
WORDS = {
    "default": set(),
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"},
    "yarn": {"factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"},
    "longrope": {
        "factor", "short_factor", "long_factor", "original_max_position_embeddings", "attention_factor",
        "long_mscale", "short_mscale",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Rotary:
    """``settings`` by GGUF's keys; ``factors``: tensors of one dimension by name."""

    settings: Mapping[str, Any]
    factors: Mapping[str, tuple[float, ...]]


def rotary(config: Any, head_size: int) -> Rotary:
    """Raises UsageError naming a way to scale positions that llama.cpp has not."""
    said = config.rope_parameters
    full = said.get("full_attention", said)
    window = said.get("sliding_attention")
    settings: dict[str, Any] = {"rope.freq_base": float(full["rope_theta"])}
    if window is not None:
        _known(window, {"default"})
        settings["rope.freq_base_swa"] = float(window["rope_theta"])
    turned = int(head_size * float(full.get("partial_rotary_factor") or 1.0))
    settings["rope.dimension_count"] = turned
    scaled, factors = _scaled(full, config, turned)
    return Rotary(settings | scaled, factors)


def _known(said: Mapping[str, Any], kinds: set[str]) -> str:
    kind = str(said.get("rope_type") or "default")
    if kind not in kinds:
        raise UsageError(
            f"gguf: positions are scaled by {kind!r}, which llama.cpp has not; allowed: {', '.join(kinds)}"
        )
    strange = sorted(key for key, value in said.items() if value is not None and key not in SAID | WORDS[kind])
    if strange:
        raise UsageError(f"gguf: rope_parameters say {', '.join(strange)}, which llama.cpp does not take with {kind}")
    return kind


def _scaled(
    said: Mapping[str, Any], config: Any, turned: int
) -> tuple[dict[str, Any], Mapping[str, tuple[float, ...]]]:
    kind = _known(said, set(WORDS))
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(said["factor"])}, {}
    if kind == "llama3":
        return {}, {"rope_freqs.weight": _llama3(said, turned)}
    if kind == "yarn":
        return _yarn(said, config), {}
    if kind == "longrope":
        return _longrope(said, config)
    return {}, {}


def _llama3(said: Mapping[str, Any], turned: int) -> tuple[float, ...]:
    """What each frequency is divided by: 1 for short waves, ``factor`` for long ones, in between in between."""
    base, factor, whole = float(said["rope_theta"]), float(said["factor"]), said["original_max_position_embeddings"]
    low, high = float(said["low_freq_factor"]), float(said["high_freq_factor"])
    found = []
    for pair in range(0, turned, 2):
        turns = whole / (2 * math.pi * base ** (pair / turned))  # of this frequency in the original context
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / (share + (1 - share) / factor))
    return tuple(found)


def _yarn(said: Mapping[str, Any], config: Any) -> dict[str, Any]:
    factor = float(said["factor"])
    usual = 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0  # which llama.cpp multiplies by itself
    attention = said.get("attention_factor")
    original = said.get("original_max_position_embeddings") or config.max_position_embeddings
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": int(original),
        "rope.scaling.attn_factor": 1.0 if attention is None else float(attention) / usual,
        "rope.scaling.yarn_beta_fast": float(said.get("beta_fast") or 32.0),
        "rope.scaling.yarn_beta_slow": float(said.get("beta_slow") or 1.0),
    }


def _longrope(said: Mapping[str, Any], config: Any) -> tuple[dict[str, Any], Mapping[str, tuple[float, ...]]]:
    original = int(said.get("original_max_position_embeddings") or config.original_max_position_embeddings)
    factor = float(said.get("factor") or config.max_position_embeddings / original)
    attention = said.get("attention_factor")
    if attention is None:
        attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    settings = {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(attention),
    }
    factors = {
        f"rope_factors_{which}.weight": tuple(map(float, said[f"{which}_factor"])) for which in ("long", "short")
    }
    return settings, factors
