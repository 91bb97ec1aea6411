"""LoRA's variants on tiny models: settings, and what puts them in."""

from __future__ import annotations

from typing import Any

import torch

from peftctl.methods import METHODS, Anatomy, DataFacts
from peftctl.methods.lora_settings import LoraSettings
from peftctl.model import attach, targets
from tests import experts, tiny

FACTS = DataFacts(rows=8, tokens=100, supervised_tokens=50, longest=20, steps=3)
LORA = METHODS["lora"]
IDS = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
EXPERTS = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")


def untied(seed: int = 0) -> Any:
    return tiny.llama(seed, tie_word_embeddings=False)


def gpt2(seed: int = 0) -> Any:
    return tiny.gpt2(seed, dropout=0.0)


MODELS = {
    "tied": tiny.llama, "untied": untied, "gpt2": gpt2, "qwen2": tiny.qwen2, "gemma2": tiny.gemma2,
    "mixtral": experts.mixtral, "gpt_oss": experts.gpt_oss, "qwen3_moe": experts.qwen3_moe,
}  # fmt: skip
# By name: the model, the settings beside a rank of 4, and how many parameters are trained in all: two layers each.
# A layer of Llama's: q and o 64 each, k and v 48, gate, up and down 96, times the rank. GPT-2's: 512 times the rank.
VARIANTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "plain": ("tied", {}, 2 * 4 * 512),
    "layers": ("tied", {"layers": 1}, 4 * 512),
    "rslora": ("tied", {"rslora": True, "alpha": 3.0}, 2 * 4 * 512),
    "patterns": (
        "tied",
        {"rank_pattern": {"q_proj": 2, "*.1.mlp.*": 6}, "alpha_pattern": {"v_proj": 5.0}, "rslora": True},
        2 * (2 * 64 + 4 * (48 + 48 + 64)) + 4 * 288 + 6 * 288,
    ),
    "dora": ("tied", {"dora": True}, 2 * (4 * 512 + 32 + 16 + 16 + 32 + 64 + 64 + 32)),
    "dora_conv1d": ("gpt2", {"dora": True}, 2 * (4 * 512 + 96 + 32 + 128 + 32)),
    "dora_embedding": ("untied", {"dora": True, "targets": "embed_tokens"}, 4 * (264 + 32) + 32),
    "gaussian": ("tied", {"init": "gaussian"}, 2 * 4 * 512),
    "orthogonal": ("tied", {"init": "orthogonal"}, 2 * 4 * 512),
    "pissa": ("tied", {"init": "pissa"}, 2 * 4 * 512),
    "pissa_conv1d": ("gpt2", {"init": "pissa", "rslora": True, "alpha_pattern": {"c_fc": 5.0}}, 2 * 4 * 512),
    "pissa_niter_4": ("tied", {"init": "pissa_niter_4", "rank_pattern": {"q_proj": 2}}, 2 * (4 * 512 - 2 * 64)),
    "olora": ("tied", {"init": "olora", "dropout": 0.1}, 2 * 4 * 512),
    "olora_conv1d": ("gpt2", {"init": "olora", "lora_bias": True}, 2 * (4 * 512 + 96 + 32 + 128 + 32)),
    "bias": ("qwen2", {"lora_bias": True, "targets": ["q_proj", "v_proj"]}, 2 * (4 * (64 + 48) + 32 + 16)),
    "bias_conv1d": ("gpt2", {"lora_bias": True}, 2 * (4 * 512 + 96 + 32 + 128 + 32)),
    "embedding": ("untied", {"targets": ["all-linear", "embed_tokens", "lm_head"]}, 2 * 4 * 512 + 2 * 4 * (264 + 32)),
    "norms": ("tied", {"modules_to_save": ["norm", "input_layernorm"]}, 2 * 4 * 512 + 3 * 32),
    "whole_ends": ("untied", {"modules_to_save": ["embed_tokens", "lm_head"]}, 2 * 4 * 512 + 2 * 264 * 32),
    "whole_tied": ("tied", {"modules_to_save": "embed_tokens"}, 2 * 4 * 512 + 264 * 32),
    "whole_mlp": ("tied", {"modules_to_save": "*.1.mlp"}, 2 * 4 * 224 + 4 * 288 + 3 * 32 * 64),
    "whole_conv1d": ("gpt2", {"modules_to_save": ["wpe", "ln_1"]}, 2 * 4 * 512 + 512 * 32 + 2 * 2 * 32),
    "tokens_tied": ("tied", {"trainable_tokens": [4, 9]}, 2 * 4 * 512 + 2 * 32),
    "tokens_untied": ("untied", {"trainable_tokens": [4, 9], "dora": True}, 2 * (4 * 512 + 256) + 2 * 32),
    "tokens_gpt2": ("gpt2", {"trainable_tokens": [4]}, 2 * 4 * 512 + 32),
    "tokens_gemma2": ("gemma2", {"trainable_tokens": 4, "targets": "q_proj"}, 2 * 4 * 64 + 32),
    "experts": ("mixtral", {"target_parameters": EXPERTS}, 2 * 4 * (224 + 4 * (128 + 32) + 4 * (32 + 64))),
    "experts_transposed": ("gpt_oss", {"target_parameters": EXPERTS}, 2 * 4 * (224 + 4 * (128 + 32) + 4 * (32 + 64))),
    "experts_only": (
        "qwen3_moe", {"targets": [], "target_parameters": "down_proj", "init": "gaussian"}, 2 * 4 * 4 * (32 + 24),
    ),
    "experts_some": (
        "mixtral",
        {"target_parameters": "gate_up_proj", "rank_pattern": {"gate_up_proj": 1}, "layers": 0, "rslora": True},
        4 * 224 + 4 * (128 + 32),
    ),
    "experts_whole_gate": (
        "mixtral", {"target_parameters": "down_proj", "modules_to_save": "mlp.gate"},
        2 * (4 * 224 + 4 * 4 * (32 + 64) + 4 * 32),
    ),
    "many": (
        "tied",
        {"init": "pissa", "modules_to_save": "norm", "trainable_tokens": [4], "lora_bias": True, "rslora": True,
         "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 7.0}, "loraplus": 8.0},
        2 * (4 * 512 - 2 * 64 + 256) + 32 + 32,
    ),
}  # fmt: skip
NO_MERGE = ("many",)  # a bias on layers that have none


def settled(**settings: Any) -> LoraSettings:
    made = LORA.resolve(LORA.settings.model_validate({"name": "lora", "rank": 4, **settings}))
    assert isinstance(made, LoraSettings)
    return made


def put(model: Any, dtype: torch.dtype = torch.float32, **settings: Any) -> tuple[Any, LoraSettings, Anatomy]:
    """The PEFT model in eval mode, the settings resolved, and the anatomy."""
    made = settled(**settings)
    model = model.to(dtype).eval().requires_grad_(False)
    anatomy = attach.anatomy(model, targets.of(model, LORA, made), LORA.beside(model, made))
    torch.manual_seed(0)
    return attach.attach(model, LORA, made, anatomy, "CAUSAL_LM", FACTS).eval(), made, anatomy


def fill(model: Any) -> None:
    """Random numbers in place of everything that is trained, so that nothing is hidden by a zero."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits.float()
