"""What a task says of writing where its model writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftctl.example import Example, Turn


class Silent:
    """A task whose model writes no text."""

    generates: bool = False
    chats: bool = False

    def prompt(self, asked: str | Sequence[Turn], tokenizer: Any) -> list[int]:
        return []

    def asked(self, example: Example, tokenizer: Any) -> None:
        return None

    def written(self, pairs: Sequence[tuple[str, str]]) -> Mapping[str, float]:
        return {}
