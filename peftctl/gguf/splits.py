"""How byte-level tokenizers split text before merging, and llama.cpp's name for each way that it knows.

llama.cpp has these splits in its code, under names that a file gives in ``tokenizer.ggml.pre``; what a tokenizer.json
says in regular expressions has to be one of them. Source: llama.cpp, src/llama-vocab.cpp, ``llm_tokenizer_bpe``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from peftctl.errors import UsageError

Split = tuple[str, ...]  # the steps, in order, each as ``_step`` writes it

LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
MARKED = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+"
OTHERS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+"
CAPITALS = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
OTHERS_AND_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"

BYTES = "bytes"  # letters for bytes, nothing split
GPT2 = "bytes, split"  # with the regular expression of GPT-2
DIGITS = "digits"  # each by itself

KNOWN: dict[Split, str] = {
    (GPT2,): "gpt-2",
    (DIGITS, GPT2): "smollm",
    (rf"{SHORT}|{LETTERS}|\p{{N}}{{1,3}}|{OTHERS}|{SPACES}", BYTES): "llama-bpe",
    (rf"{SHORT}|{LETTERS}|\p{{N}}|{OTHERS}|{SPACES}", BYTES): "qwen2",
    (
        rf"{SHORT}|{MARKED}|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{SPACES}",
        BYTES,
    ): "qwen35",
}
# Splits whose namesakes in llama.cpp have no combining marks in words: Hindi, Thai, Bengali would be cut otherwise.
NO_MARKS: dict[Split, str] = {
    (rf"{CASED}|{CAPITALS}|\p{{N}}|{OTHERS_AND_SLASHES}|{SPACES}", BYTES): "tekken",
    (
        rf"{CASED}{SHORT}?|{CAPITALS}{SHORT}?|\p{{N}}{{1,3}}|{OTHERS_AND_SLASHES}|{SPACES}",
        BYTES,
    ): "gpt-4o",
}


def name(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """llama.cpp's name for what a tokenizer.json says of splitting. Raises UsageError where it has none."""
    steps = tuple(_steps(pre_tokenizer) or ())
    if steps in NO_MARKS:
        raise UsageError(
            f"gguf: the tokenizer splits text as {NO_MARKS[steps]} does, and llama.cpp's {NO_MARKS[steps]} cuts words "
            "with combining marks otherwise"
        )
    if steps not in KNOWN:
        raise UsageError(
            f"gguf: the tokenizer splits text in a way that has no name in llama.cpp (found "
            f"{json.dumps(pre_tokenizer)[:200]}); known: {', '.join(KNOWN.values())}"
        )
    return KNOWN[steps]


def _steps(said: Mapping[str, Any] | None) -> list[str] | None:
    if said is None:
        return []
    if said["type"] == "Sequence":
        parts = [_steps(part) for part in said["pretokenizers"]]
        return None if None in parts else [step for part in parts if part for step in part]
    step = _step(said)
    return None if step is None else [step]


def _step(said: Mapping[str, Any]) -> str | None:
    kind = said["type"]
    if kind == "ByteLevel" and not said.get("add_prefix_space"):
        return GPT2 if said.get("use_regex", True) else BYTES
    if kind == "Digits" and said.get("individual_digits"):
        return DIGITS
    plain = said.get("behavior") == "Isolated" and not said.get("invert")
    if kind == "Split" and plain and "Regex" in said.get("pattern", {}):
        return str(said["pattern"]["Regex"])
    return None
