"""What llama.cpp reads out of a model's name, beside everything else that a file says."""

from __future__ import annotations

import json
import re
from typing import Any

# https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp: in a model whose name has this, white space
# after special tokens is dropped, and these tokens have to be there. In one called "modern-bert" [MASK] has to be.
PHI3, BERT = re.compile(r"phi(-?)3", re.IGNORECASE), re.compile(r"modern-bert", re.IGNORECASE)
NEEDED = ("<unk>", "<s>", "</s>", "<|endoftext|>")


def understood(name: str, tokenizer: Any) -> str:
    """``name``, or one like it, by which llama.cpp takes the space after special tokens as ``tokenizer`` does."""
    name = BERT.sub("modern bert", name)
    if not _drops_space(tokenizer):
        return PHI3.sub("phi 3", name)
    return name if PHI3.search(name) else f"{name} (Phi-3)"


def _drops_space(tokenizer: Any) -> bool:
    added = json.loads(tokenizer.backend_tokenizer.to_str())["added_tokens"]
    there = tokenizer.get_vocab()
    return any(each["rstrip"] for each in added) and all(token in there for token in NEEDED)
