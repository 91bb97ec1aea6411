"""Tiny mixtures of experts: weights of all experts in one parameter, in the two orders that models have."""

from __future__ import annotations

from typing import Any

from tests.tiny import SIZES

ROPE = {"rope_type": "default", "rope_theta": 1e4}


def mixtral(seed: int = 0, **changes: Any) -> Any:
    """Experts' weights as [experts, outputs, inputs]."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(seed)
    sizes = {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.2}
    return MixtralForCausalLM(MixtralConfig(**(sizes | changes)))


def gpt_oss(seed: int = 0) -> Any:
    """Experts' weights as [experts, inputs, outputs], with biases."""
    import torch
    from transformers import GptOssConfig, GptOssForCausalLM

    torch.manual_seed(seed)
    sizes = {**SIZES, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "initializer_range": 0.2}
    return GptOssForCausalLM(GptOssConfig(**sizes, rope_parameters=ROPE))


def qwen3_moe(seed: int = 0) -> Any:
    """Experts of another width than the dense layers'."""
    import torch
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(seed)
    sizes = {**SIZES, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, initializer_range=0.2))
