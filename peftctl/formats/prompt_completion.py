"""A prompt with its completion: ``{"prompt": "...", "completion": "..."}``, both text, or both lists of messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.example import Conversation, Example, Segments
from peftctl.formats.turns import answered, tools_of


@dataclass(frozen=True)
class PromptCompletion:
    """The completion and its end are learned; the prompt is read. Texts are joined as they stand."""

    name: str = "prompt_completion"
    columns: str = "prompt: text, completion: text (or both lists of messages)"
    reads: tuple[str, ...] = ("prompt", "completion", "tools")
    makes: tuple[type[Example], ...] = (Segments, Conversation)

    def matches(self, columns: frozenset[str]) -> bool:
        return {"prompt", "completion"} <= columns

    def example(self, row: Mapping[str, Any]) -> Segments | Conversation:
        return answered(row, "completion", tools_of(row.get("tools")))


FORMAT = PromptCompletion()
