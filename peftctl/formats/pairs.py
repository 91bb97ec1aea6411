"""Two texts: ``{"anchor": "...", "positive": "..."}`` that belong together, a source and the target that is to be
written of it, or two sentences with a score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.example import Example, Pair, RowFault
from peftctl.formats.contract import MOST, WRONG_TYPE, kind_of, text_of, value_of

ALIKE, SCORED = ("anchor", "positive"), ("sentence1", "sentence2", "score")
WRITTEN = ("source", "target")


@dataclass(frozen=True)
class Pairs:
    """For embeddings: a pair that belongs together, or one whose likeness is known as a number. For models that read
    one text and write another: both."""

    name: str = "pairs"
    columns: str = (
        "anchor: text, positive: text; or source: text, target: text; or sentence1: text, sentence2: text, "
        "score: number"
    )
    reads: tuple[str, ...] = (*ALIKE, *WRITTEN, *SCORED)
    makes: tuple[type[Example], ...] = (Pair,)

    def matches(self, columns: frozenset[str]) -> bool:
        alike = columns.issuperset(ALIKE) and "negative" not in columns
        return alike or columns.issuperset(WRITTEN) or columns.issuperset(SCORED)

    def example(self, row: Mapping[str, Any]) -> Pair:
        if "anchor" in row:
            return Pair(text_of(row, "anchor", empty=False), text_of(row, "positive", empty=False))
        if "source" in row:
            return Pair(text_of(row, "source", empty=False), text_of(row, "target", empty=False))
        first, second = text_of(row, "sentence1", empty=False), text_of(row, "sentence2", empty=False)
        score = value_of(row, "score")
        if isinstance(score, str):  # all that a CSV file holds is text
            try:
                score = float(score)
            except ValueError:
                raise RowFault(f"score is {score!r}, not a number", WRONG_TYPE) from None
        if isinstance(score, bool) or not isinstance(score, int | float) or not -MOST <= score <= MOST:
            raise RowFault(f"score is {kind_of(score)}, not a finite number", WRONG_TYPE)
        return Pair(first, second, float(score))


FORMAT = Pairs()
