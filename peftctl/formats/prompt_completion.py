"""Plain text with an answer: ``{"prompt": "...", "completion": "..."}``, no chat template between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.example import RowFault, Segment, Segments
from peftctl.formats.contract import text_of


@dataclass(frozen=True)
class PromptCompletion:
    """The completion and the end of the text are learned; the prompt is read. They are joined as they stand."""

    name: str = "prompt_completion"
    columns: str = "prompt: text, completion: text"

    def matches(self, columns: frozenset[str], task: str) -> bool:
        return task == "causal_lm" and {"prompt", "completion"} <= columns

    def example(self, row: Mapping[str, Any]) -> Segments:
        prompt, completion = text_of(row, "prompt"), text_of(row, "completion")
        if not completion:
            raise RowFault("completion is empty")
        pieces = (Segment(prompt), Segment(completion, weight=1.0))
        return Segments(tuple(piece for piece in pieces if piece.text))


FORMAT = PromptCompletion()
