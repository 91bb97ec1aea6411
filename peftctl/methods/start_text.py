"""The text that a prompt or a prefix starts from, in the model's own tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peftctl.errors import UsageError


def contradictions(init: str, text: str | None) -> Iterator[tuple[str, str, str]]:
    """A text that nothing starts from, or a start from one that is not there."""
    if (text is not None) != (init == "text"):
        yield "text", "is what `init: text` starts from, and needed there alone", ""


def ids(model: Any, text: str, tokens: int) -> list[int]:
    """The ids of ``text``, as the tokenizer beside the model begins a text, over and over until there are ``tokens``.

    Raises UsageError where it has more of them or none, or there is no tokenizer.
    """
    from transformers import AutoTokenizer

    where = model.config._name_or_path
    try:
        found: list[int] = AutoTokenizer.from_pretrained(where)(text)["input_ids"]
    except (ValueError, OSError, KeyError, ImportError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(f"method.text: the tokenizer of {where or 'the model'} cannot be loaded: {reason}") from error
    if not found:
        raise UsageError("method.text: has no tokens")
    if len(found) > tokens:
        raise UsageError(
            f"method.text: does not fit into method.tokens ({len(found)} tokens into {tokens})",
            f"tokens: {len(found)} has room for all of it",
        )
    return (found * -(-tokens // len(found)))[:tokens]
