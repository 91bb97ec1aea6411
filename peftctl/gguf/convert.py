"""A folder that transformers loads, as one GGUF file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError
from peftctl.gguf import families, names, rotary, settings, tensors, writer
from peftctl.gguf.numbers import TYPES
from peftctl.gguf.vocabulary import Vocabulary, vocabulary
from peftctl.merge.weights import Weights
from peftctl.model import identity

EMBEDDING = "token_embd.weight"


@dataclass(frozen=True)
class Source:
    """The model in ``folder``, with its ``config`` and ``tokenizer``; ``ends``: ids of tokens that end an answer.
    ``about``: GGUF's general fields, as name and license. ``sampling``: how its makers draw tokens, in
    transformers' words."""

    folder: Path
    config: Any
    tokenizer: Any
    ends: tuple[int, ...]
    about: Mapping[str, str]
    sampling: Mapping[str, Any] = field(default_factory=dict)


def check(config: Any, tokenizer: Any) -> Vocabulary:
    """The tokenizer as GGUF has it. Raises UsageError where no GGUF file can be made of a model with this config and
    tokenizer."""
    kind = families.family(config)
    settings.settings(config, kind, rotary.rotary(config, settings.head_size(config)), lambda _: None)
    return vocabulary(tokenizer, max(config.vocab_size, len(tokenizer)))


def convert(source: Source, path: Path, type_: str, note: Callable[[str], None]) -> None:
    """Write ``path``, a file of ``type_``, which is none that has to be quantised.

    Raises UsageError where llama.cpp has nothing for the model or its tokenizer.
    """
    config = source.config
    kind = families.family(config)
    positions = rotary.rotary(config, settings.head_size(config))
    with Weights(identity.weight_files(source.folder)) as weights:
        found = tensors.tensors(config, kind, weights.stored)
        rows = next((tensor.shape[0] for tensor in found if tensor.name == EMBEDDING), 0)
        if not rows:
            raise UsageError(f"gguf: {source.folder} holds no embedding")
        words = vocabulary(source.tokenizer, rows)
        said = settings.settings(config, kind, positions, note) | {"vocab_size": rows}
        about = {**source.about, "name": names.understood(source.about["name"], source.tokenizer)}
        fields: dict[str, Any] = {f"general.{key}": value for key, value in about.items()}
        fields |= {"general.file_type": TYPES[type_].file_type, "general.quantization_version": 2}
        fields |= {f"{kind.architecture}.{key}": value for key, value in said.items()}
        fields |= _tokenizer(words, source)
        writer.write(path, kind.architecture, fields, found, positions.factors, weights, type_)


def _tokenizer(words: Vocabulary, source: Source) -> dict[str, Any]:
    fields: dict[str, Any] = {"model": words.model, "pre": words.split, "tokens": list(words.tokens)}
    fields["token_type"] = list(words.kinds)
    if words.merges:
        fields["merges"] = list(words.merges)
    if words.scores:
        fields["scores"] = list(words.scores)
    fields |= {f"{word}_token_id": number for word, number in words.special.items()}
    fields |= {"add_bos_token": words.add_bos, "add_eos_token": words.add_eos}
    if words.space_first is not None:
        fields["add_space_prefix"] = words.space_first
    eos = words.special.get("eos")
    others = [end for end in source.ends if end != eos]
    if eos is None and others:
        fields["eos_token_id"] = others.pop(0)
    if others:
        fields["eot_token_id"] = others[0]
    found = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
    if template := source.tokenizer.chat_template:
        found["tokenizer.chat_template"] = template
    return found
