"""The model families whose GGUF files were seen to give transformers' logits, one table entry each.

What llama.cpp has in its code rather than reads from the file is checked here: a model that differs is refused.
Sources: llama.cpp, src/models/*.cpp (``load_arch_hparams``, ``load_arch_tensors``); transformers' modeling files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.errors import UsageError

Settings = dict[str, Any]  # GGUF's keys below the architecture's name


@dataclass(frozen=True)
class Family:
    """``architecture``: llama.cpp's name. ``activation``: the only one that it computes there. ``interleaved``: it
    rotates neighbouring numbers of a head rather than its halves, so that rows of queries and keys change places.
    ``norm_offset``: what transformers adds to norms' weights as it computes. ``windows``: whether it honours
    attention windows.
    ``more`` gives settings of its own, and raises UsageError for what llama.cpp computes otherwise.
    """

    architecture: str
    activation: str = "silu"
    interleaved: bool = False
    norm_offset: float = 0.0
    windows: bool = False
    more: Callable[[Any], Settings] = lambda config: {}


def family(config: Any) -> Family:
    """The family of a model's config. Raises UsageError where there is none, or it is not like llama.cpp's."""
    kind = config.model_type
    if kind not in FAMILIES:
        raise UsageError(f"gguf: {kind} was not seen to work in llama.cpp (allowed: {', '.join(FAMILIES)})")
    found = FAMILIES[kind]
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    _same("hidden_act", activation, found.activation)
    return found


def _same(what: str, found: Any, computed: Any) -> None:
    if found != computed:
        raise UsageError(f"gguf: {what} is {found} in this model, and {computed} in llama.cpp's code")


def _experts(config: Any) -> Settings:
    count = getattr(config, "num_local_experts", None) or config.num_experts
    return {"expert_count": count, "expert_used_count": config.num_experts_per_tok}


def _qwen3_moe(config: Any) -> Settings:
    _same("norm_topk_prob", config.norm_topk_prob, True)
    _same("mlp_only_layers", list(config.mlp_only_layers or ()), [])
    _same("decoder_sparse_step", config.decoder_sparse_step, 1)
    return _experts(config) | {"expert_feed_forward_length": config.moe_intermediate_size}


def _scale(config: Any, largest: int) -> None:
    """Queries are divided by a number that llama.cpp knows by the count of layers."""
    wide = config.num_hidden_layers == largest
    computed = config.hidden_size // config.num_attention_heads if wide else config.head_dim
    _same("query_pre_attn_scalar", config.query_pre_attn_scalar, computed)


def _gemma2(config: Any) -> Settings:
    _scale(config, 46)
    caps = {
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
    }
    if caps["attn_logit_softcapping"] is None:
        raise UsageError("gguf: attn_logit_softcapping is none in this model, which llama.cpp's code always has")
    return {name: value for name, value in caps.items() if value is not None}


def _gemma3(config: Any) -> Settings:
    _scale(config, 62)
    _same("attn_logit_softcapping", config.attn_logit_softcapping, None)
    _same("use_bidirectional_attention", bool(config.use_bidirectional_attention), False)
    cap = config.final_logit_softcapping
    return {} if cap is None else {"final_logit_softcapping": cap}


def _smollm3(config: Any) -> Settings:
    step = [int((layer + 1) % 4 != 0) for layer in range(config.num_hidden_layers)]
    _same("no_rope_layers", list(config.no_rope_layers), step)
    return {}


FAMILIES: Mapping[str, Family] = {
    "llama": Family("llama", interleaved=True),
    "mistral": Family("llama", interleaved=True),
    "mixtral": Family("llama", interleaved=True, more=_experts),
    "smollm3": Family("smollm3", interleaved=True, more=_smollm3),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "qwen3_moe": Family("qwen3moe", more=_qwen3_moe),
    "gemma2": Family("gemma2", activation="gelu_pytorch_tanh", norm_offset=1.0, windows=True, more=_gemma2),
    "gemma3_text": Family("gemma3", activation="gelu_pytorch_tanh", norm_offset=1.0, windows=True, more=_gemma3),
    "phi3": Family("phi3"),
}
