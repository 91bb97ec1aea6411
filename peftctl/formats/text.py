"""Plain text: ``{"text": "..."}``, or the lines of a .txt file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.example import Example, Segment, Segments
from peftctl.formats.contract import text_of


@dataclass(frozen=True)
class Text:
    """All of it is learned, and the end of the text."""

    name: str = "text"
    columns: str = "text: text"
    reads: tuple[str, ...] = ("text",)
    makes: tuple[type[Example], ...] = (Segments,)

    def matches(self, columns: frozenset[str]) -> bool:
        return "text" in columns

    def example(self, row: Mapping[str, Any]) -> Segments:
        return Segments((Segment(text_of(row, "text", empty=False), 1.0),))


FORMAT = Text()
