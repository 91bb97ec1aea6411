"""A tiny random model of each family that goes into GGUF files, each with a tokenizer of its own kind."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftctl.gguf import splits
from peftctl.gguf.texts import PLAIN
from tests import tiny

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.2,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0 + n / 8 for n in range(8)],
    "long_factor": [2.0 + n for n in range(8)], "original_max_position_embeddings": 256, "factor": 2.0,
}  # fmt: skip
BOTH = {"full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 4.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}  # fmt: skip

# Of each: model_type, what of its config is not SIZES, and the kind of its tokenizer.
MODELS: Mapping[str, tuple[str, dict[str, Any], str]] = {
    "smollm": ("llama", {"tie_word_embeddings": True}, "smollm"),
    "llama2": ("llama", {"attention_bias": True, "mlp_bias": True}, "spaced"),
    "llama3": ("llama", {"rope_parameters": LLAMA3, "head_dim": 32}, "llama-bpe"),
    "llama_yarn": ("llama", {"rope_parameters": YARN}, "gpt-2"),
    "llama_linear": ("llama", {"rope_parameters": LINEAR}, "gpt-2"),
    "mistral": ("mistral", {"sliding_window": None}, "spaced"),
    "mistral_nemo": ("mistral", {"sliding_window": 128, "head_dim": 32}, "llama-bpe"),
    "mixtral": ("mixtral", {"num_local_experts": 4, **EXPERTS}, "spaced"),
    "smollm3": ("smollm3", {"num_hidden_layers": 5, "pad_token_id": 0}, "llama-bpe"),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}, "qwen2"),
    "qwen3": ("qwen3", {"head_dim": 32}, "qwen2"),
    "qwen3_moe": ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 32, "norm_topk_prob": True, **EXPERTS},
                  "qwen35"),
    "gemma2": ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 24}, "unspaced"),
    "gemma3": ("gemma3_text", {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 24,
                               "rope_parameters": BOTH, "num_hidden_layers": 7}, "unspaced"),
    "phi3": ("phi3", {"sliding_window": None, "pad_token_id": 0}, "stripping"),
    "phi3_long": ("phi3", {"rope_parameters": LONG, "original_max_position_embeddings": 256, "pad_token_id": 0},
                  "spaced"),
}  # fmt: skip


def save(folder: Path, name: str, **sizes: Any) -> Path:
    """The model's folder, with a tokenizer trained on a few texts and ChatML's tokens in it."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, changes, words = MODELS[name]
    made = tokenizer(words)
    names = {"vocab_size": len(made) + 5, "bos_token_id": made.bos_token_id, "eos_token_id": made.eos_token_id}
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, "pad_token_id": None, **names, **changes, **sizes})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # norms of ones and biases of zeros would hide what becomes of them
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def tokenizer(kind: str) -> Any:
    """A tokenizer of that ``kind``: SentencePiece's way, with (``spaced``) or without a space before texts, or with one
    and dropping white space after special tokens as Phi-3's does; or bytes split as the name in llama.cpp says."""
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    sentencepiece, strips = ("spaced", "unspaced", "stripping"), kind == "stripping"
    core = _spaced(first=kind != "unspaced") if kind in sentencepiece else _bytes(kind)
    core.add_special_tokens(["<s>"])
    core.add_special_tokens([AddedToken(each, rstrip=strips) for each in ("<|im_end|>", "<|im_start|>")])
    core.add_tokens([AddedToken("<tool>", normalized=False, rstrip=strips)])
    if strips:
        core.add_special_tokens(["<|endoftext|>", AddedToken("</s>", rstrip=True)])
    made = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="<|im_end|>")
    made.chat_template = tiny.CHATML
    return made


def _bytes(kind: str) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    steps = next(steps for steps, name in splits.KNOWN.items() if name == kind)
    whole = {
        splits.GPT2: pre_tokenizers.ByteLevel(add_prefix_space=False),
        splits.BYTES: pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        splits.DIGITS: pre_tokenizers.Digits(individual_digits=True),
    }
    core = Tokenizer(models.BPE(ignore_merges=kind in ("llama-bpe", "tekken")))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [whole[step] if step in whole else pre_tokenizers.Split(Regex(step), "isolated") for step in steps]
    )
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(PLAIN, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False))
    return core


def _spaced(*, first: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers

    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    core = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps: Sequence[Any] = [normalizers.Prepend("\u2581")] if first else []
    core.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "\u2581")])
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            *([decoders.Strip(" ", 1, 0)] if first else []),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=names, limit_alphabet=120, show_progress=False)
    core.train_from_iterator([word for text in PLAIN for word in text.replace(" ", " \u2581").split(" ")], trainer)
    said = json.loads(core.to_str())
    # Bytes are words of the vocabulary, as they are in Llama's, and no added tokens, as the trainer has them.
    said["added_tokens"] = [token for token in said["added_tokens"] if not token["content"].startswith("<0x")]
    core = Tokenizer.from_str(json.dumps(said))
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return core
