"""Tiny random models and tokenizers: real classes of transformers, a few thousand parameters, made in milliseconds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 258,
    "pad_token_id": 258,
}
SPECIAL = ["<|end|>", "<|im_start|>", "<|im_end|>"]


def tokenizer(template: str | None = CHATML, merges: Sequence[tuple[str, str]] = ()) -> Any:
    """Byte-level BPE: 256 bytes, the given merges, and ChatML's tokens; end of text and padding are <|im_end|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *("".join(pair) for pair in merges)]
    core = Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=list(merges)))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    made = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.chat_template = template
    return made


def llama(seed: int = 0, **changes: Any) -> Any:
    """A Llama with grouped-query attention and tied embeddings, random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {**SIZES, "tie_word_embeddings": True, "initializer_range": 0.2}
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(settings | changes)))


def gpt2(seed: int = 0, dropout: float = 0.1) -> Any:
    """A GPT-2: transposed Conv1D layers, learned positions, fused query-key-value."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=264,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=512,
        bos_token_id=258,
        eos_token_id=258,
        attn_pdrop=dropout,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
    )
    return GPT2LMHeadModel(config)


def qwen2(seed: int = 0) -> Any:
    """A Qwen2: biases on queries, keys and values."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, initializer_range=0.2))


def qwen3(seed: int = 0) -> Any:
    """A Qwen3: norms on each head's queries and keys."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, initializer_range=0.2))


def mistral(seed: int = 0, window: int = 64) -> Any:
    """A Mistral, none of whose layers sees further back than ``window`` tokens."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(seed)
    return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=window, initializer_range=0.2))


def gemma2(seed: int = 0) -> Any:
    """A Gemma2: soft caps on attention and logits, norms that add one, GELU, a window on every other layer."""
    import torch
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(seed)
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=8, query_pre_attn_scalar=8, initializer_range=0.2))


ENCODER: dict[str, Any] = {
    "vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128, "pad_token_id": 0, "initializer_range": 0.2,
}  # fmt: skip


def encoder(kind: str, seed: int = 0, **changes: Any) -> Any:
    """An encoder of that ``model_type``, without a head, as pretrained ones come."""
    import torch
    from transformers import AutoConfig, AutoModel

    sizes = {
        "distilbert": {"vocab_size": 264, "dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 4, "pad_token_id": 258}
    }
    # Of these the model's own names for special tokens must be in its vocabulary.
    special = {"modernbert": dict.fromkeys(("cls_token_id", "sep_token_id", "bos_token_id", "eos_token_id"), 2)}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **{**sizes.get(kind, ENCODER), **special.get(kind, {}), **changes})
    return AutoModel.from_config(config)


WRITERS: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0},
    "bart": {
        "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 128,
        "dropout": 0.0, "init_std": 0.2, "forced_eos_token_id": None, "bos_token_id": 256,
    },
}  # fmt: skip


def writer(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A model of that ``model_type`` that reads a text and writes another, with ``tokenizer``'s ids."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    torch.manual_seed(seed)
    names = {"vocab_size": 264, "pad_token_id": 258, "eos_token_id": 257, "decoder_start_token_id": 258}
    config = AutoConfig.for_model(kind, **{**WRITERS[kind], **names, **changes})
    return AutoModelForSeq2SeqLM.from_config(config)


def wordpieces(words: Sequence[str]) -> Any:
    """A WordPiece tokenizer of whole words and letters, with [CLS] and [SEP] around texts, as BERT's."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = [chr(number) for number in range(33, 127)]
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters), *words]
    core = Tokenizer(models.WordPiece({name: at for at, name in enumerate(dict.fromkeys(names))}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def save(folder: Path, model: Any = None, template: str | None = CHATML) -> Path:
    """A model folder with a tokenizer beside the weights."""
    (model if model is not None else llama()).save_pretrained(folder)
    tokenizer(template).save_pretrained(folder)
    return folder


def jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def chats(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Chats of differing lengths whose answer follows from the question: is its number odd or even."""
    rows = []
    for index in range(count):
        number = (index * 7919 + seed * 104729) % 997
        padding = "so " * (number % 11)
        question = {"role": "user", "content": f"{padding}is {number} odd?"}
        rows.append({"messages": [question, {"role": "assistant", "content": "odd" if number % 2 else "even"}]})
    return rows
