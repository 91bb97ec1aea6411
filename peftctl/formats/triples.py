"""Texts with one that belongs to them and one that does not: ``{"anchor": .., "positive": .., "negative": ..}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.example import Example, Triple
from peftctl.formats.contract import text_of

COLUMNS = ("anchor", "positive", "negative")


@dataclass(frozen=True)
class Triples:
    """For embeddings: the anchor is to come nearer to the positive than to the negative."""

    name: str = "triples"
    columns: str = "anchor: text, positive: text, negative: text"
    reads: tuple[str, ...] = COLUMNS
    makes: tuple[type[Example], ...] = (Triple,)

    def matches(self, columns: frozenset[str]) -> bool:
        return columns.issuperset(COLUMNS)

    def example(self, row: Mapping[str, Any]) -> Triple:
        anchor, positive, negative = (text_of(row, column, empty=False) for column in COLUMNS)
        return Triple(anchor, positive, negative)


FORMAT = Triples()
