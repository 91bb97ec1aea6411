"""A text with its label: ``{"text": "...", "label": "spam"}``; two texts with theirs, several labels, or a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.example import Example, Labelled, RowFault
from peftctl.formats.contract import MOST, SAYS_NOTHING, WRONG_TYPE, kind_of, text_of, value_of

ONE, TWO = ("text",), ("sentence1", "sentence2")


@dataclass(frozen=True)
class LabelledText:
    """For classification: a name is one class, a list of names is several, a number with a point in it a value."""

    name: str = "labelled"
    columns: str = "text: text (or sentence1, sentence2: text), label: text, whole number, number or list of texts"
    reads: tuple[str, ...] = (*ONE, *TWO, "label")
    makes: tuple[type[Example], ...] = (Labelled,)

    def matches(self, columns: frozenset[str]) -> bool:
        return "label" in columns and (columns.issuperset(ONE) or columns.issuperset(TWO))

    def example(self, row: Mapping[str, Any]) -> Labelled:
        label = _label(value_of(row, "label"))
        if "text" in row:
            return Labelled(text_of(row, "text", empty=False), label)
        first, second = (text_of(row, column, empty=False) for column in TWO)
        return Labelled(first, label, second)


def _label(value: Any) -> str | tuple[str, ...] | float:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not -MOST <= value <= MOST:
            raise RowFault("label is not a finite number", WRONG_TYPE)
        return value
    if isinstance(value, list):
        if odd := [each for each in value if not isinstance(each, str | int) or isinstance(each, bool)]:
            raise RowFault(f"label is a list with {kind_of(odd[0])} in it, not names", WRONG_TYPE)
        return tuple(str(each) for each in value)
    if not isinstance(value, str | int):
        raise RowFault(f"label is {kind_of(value)}, not text, a number or a list of texts", WRONG_TYPE)
    if not str(value).strip():
        raise RowFault("label says nothing", SAYS_NOTHING)
    return str(value)


FORMAT = LabelledText()
