"""A tokenizer as GGUF has it: tokens, their kinds, and how they join, from tokenizer.json.

Two ways to join are known. Byte-level BPE (``gpt2``) has merges in order, and a name for how text is split before.
SentencePiece's BPE (``llama``) has a score for each token instead: of two neighbours that make a token, those with the
best score join first, so a token's score is the rank of the merge that makes it, negative.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from peftctl.errors import UsageError
from peftctl.gguf import splits

SPACE = "\u2581"  # SentencePiece's sign for a space
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # GGUF's kinds of tokens
BYTES = re.compile("<0x[0-9A-F]{2}>")
MISSING = -1e9  # the score of what no merge makes: it is never joined


@dataclass(frozen=True)
class Vocabulary:
    """``model``: GGUF's word for how tokens join, ``gpt2`` or ``llama``. ``split``: llama.cpp's name for how text is
    split before, "" where the model has no such choice. ``tokens``, ``kinds`` and ``scores`` by id.
    ``add_bos``, ``add_eos``: whether a text gets them by itself. ``space_first``: whether it gets a space before it.
    ``form``: Unicode's normal form that the tokenizer brings texts to first, which llama.cpp does not.
    """

    model: str
    split: str
    tokens: Sequence[str]
    kinds: Sequence[int]
    add_bos: bool
    add_eos: bool
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    space_first: bool | None = None
    special: Mapping[str, int] = field(default_factory=dict)
    form: str = ""


def vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """``tokenizer``'s, for an embedding of ``size`` rows.

    Raises UsageError naming what of the tokenizer llama.cpp has nothing for.
    """
    said = json.loads(tokenizer.backend_tokenizer.to_str())
    model = said["model"]
    if model["type"] != "BPE":
        raise UsageError(
            f"gguf: the tokenizer joins tokens by {model['type']}; allowed: BPE, byte-level or of SentencePiece"
        )
    spaced = _spaced(said)
    form = "" if spaced else _form(said["normalizer"])
    split = "default" if spaced else splits.name(said["pre_tokenizer"])
    tokens, kinds = _tokens(said, size, spaced=spaced)
    add_bos, add_eos = _around(tokenizer)
    merges = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
    special = _special(tokenizer)
    if spaced:
        scores = _scores(tokens, kinds, merges)
        return Vocabulary("llama", split, tokens, kinds, add_bos, add_eos, (), scores, _space_first(tokenizer), special)
    joined = [" ".join(pair) for pair in merges]
    return Vocabulary("gpt2", split, tokens, kinds, add_bos, add_eos, joined, special=special, form=form)


def _form(normalizer: Mapping[str, Any] | None) -> str:
    kind = "" if normalizer is None else str(normalizer["type"])
    if kind not in ("", "NFC"):
        raise UsageError(f"gguf: the tokenizer changes texts first ({kind}), which llama.cpp does not; allowed: NFC")
    return kind


def _spaced(said: Mapping[str, Any]) -> bool:
    """Whether spaces are written as SentencePiece does."""
    return SPACE in json.dumps([said["normalizer"], said["pre_tokenizer"]], ensure_ascii=False)


def _tokens(said: Mapping[str, Any], size: int, *, spaced: bool) -> tuple[list[str], list[int]]:
    tokens = [f"[PAD{number}]" for number in range(size)]
    kinds = [UNUSED] * size
    vocab: Mapping[str, int] = said["model"]["vocab"]
    added = said["added_tokens"]
    if (most := max([*vocab.values(), *(each["id"] for each in added)])) >= size:
        raise UsageError(
            f"gguf: the tokenizer has ids up to {most}, and the model's embedding {size} rows",
            "a tokenizer with added tokens needs a model that was made larger for them",
        )
    for text, number in vocab.items():
        tokens[number] = text
        kinds[number] = BYTE if spaced and BYTES.fullmatch(text) else NORMAL
    for each in added:
        tokens[each["id"]] = each["content"]
        kinds[each["id"]] = CONTROL if each["special"] else USER_DEFINED
    unknown = said["model"].get("unk_token")
    if spaced and unknown in vocab:
        kinds[vocab[unknown]] = UNKNOWN
    return tokens, kinds


def _scores(tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[tuple[str, ...]]) -> list[float]:
    """Each token's score: minus the rank of the first merge that makes it."""
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    return [
        float(-ranks[token]) if kind == NORMAL and token in ranks else (MISSING if kind == NORMAL else 0.0)
        for token, kind in zip(tokens, kinds, strict=True)
    ]


def _around(tokenizer: Any) -> tuple[bool, bool]:
    """Whether a text gets the token that begins texts, and the one that ends them."""
    ids = tokenizer("a")["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return bos is not None and ids[:1] == [bos], eos is not None and ids[-1:] == [eos]


def _space_first(tokenizer: Any) -> bool:
    ids = tokenizer("a", add_special_tokens=False)["input_ids"]
    return bool(tokenizer.convert_ids_to_tokens(ids)[0].startswith(SPACE))


def _special(tokenizer: Any) -> dict[str, int]:
    """GGUF's words for special tokens, with their ids."""
    named = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    found = {word: getattr(tokenizer, f"{ours}_token_id") for word, ours in named.items()}
    return {word: number for word, number in found.items() if number is not None}
