"""Words with a tag each: ``{"tokens": ["The", "jury"], "tags": ["DET", "NOUN"]}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.example import Example, RowFault, Tagged
from peftctl.formats.contract import SAYS_NOTHING, WRONG_TYPE, kind_of, value_of


@dataclass(frozen=True)
class TaggedWords:
    """For tagging: as many tags as words. Names of spans are in the form B-..., I-..., O, or one tag a word."""

    name: str = "tagged"
    columns: str = "tokens: list of texts, tags: list of texts, one for each"
    reads: tuple[str, ...] = ("tokens", "tags")
    makes: tuple[type[Example], ...] = (Tagged,)

    def matches(self, columns: frozenset[str]) -> bool:
        return columns.issuperset(self.reads)

    def example(self, row: Mapping[str, Any]) -> Tagged:
        words, tags = (_texts(row, column) for column in self.reads)
        if not words:
            raise RowFault("tokens says nothing", SAYS_NOTHING)
        if len(words) != len(tags):
            raise RowFault(f"{len(words)} tokens and {len(tags)} tags", "other numbers of tokens and tags")
        return Tagged(words, tags)


def _texts(row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    value = value_of(row, column)
    if not isinstance(value, list):
        raise RowFault(f"{column} is {kind_of(value)}, not a list", WRONG_TYPE)
    for number, each in enumerate(value, start=1):
        if not isinstance(each, str | int) or isinstance(each, bool):
            raise RowFault(f"{column} has {kind_of(each)} at place {number}, not text", WRONG_TYPE)
        if not str(each).strip():
            raise RowFault(f"{column} says nothing at place {number}", SAYS_NOTHING)
    return tuple(str(each) for each in value)


FORMAT = TaggedWords()
