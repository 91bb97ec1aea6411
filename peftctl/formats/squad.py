"""A question about a text, and its answers in it, as SQuAD has them:
``{"question": "..", "context": "..", "answers": {"text": [".."], "answer_start": [0]}}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.example import Example, RowFault, Span
from peftctl.formats.contract import WRONG_TYPE, kind_of, text_of, value_of

COLUMNS = ("question", "context", "answers")
OFF = "answer not at its place"


@dataclass(frozen=True)
class Squad:
    """For question answering: an answer stands in the context at its place, counted in characters. No answers: none."""

    name: str = "squad"
    columns: str = "question: text, context: text, answers: {text: list of texts, answer_start: list of whole numbers}"
    reads: tuple[str, ...] = COLUMNS
    makes: tuple[type[Example], ...] = (Span,)

    def matches(self, columns: frozenset[str]) -> bool:
        return columns.issuperset(COLUMNS)

    def example(self, row: Mapping[str, Any]) -> Span:
        question, context = (text_of(row, column, empty=False) for column in COLUMNS[:2])
        return Span(question, context, _answers(value_of(row, "answers"), context))


def _answers(value: Any, context: str) -> tuple[tuple[int, str], ...]:
    if not isinstance(value, Mapping) or not {"text", "answer_start"} <= set(value):
        raise RowFault(f"answers is {kind_of(value)}, not {{text: [...], answer_start: [...]}}", WRONG_TYPE)
    texts, places = value["text"], value["answer_start"]
    for name, listed in (("text", texts), ("answer_start", places)):
        if not isinstance(listed, list):
            raise RowFault(f"answers.{name} is {kind_of(listed)}, not a list", WRONG_TYPE)
    if len(texts) != len(places):
        raise RowFault(f"{len(texts)} answers and {len(places)} places", "other numbers of answers and places")
    return tuple(_answer(text, place, context) for text, place in zip(texts, places, strict=True))


def _answer(text: Any, place: Any, context: str) -> tuple[int, str]:
    if not isinstance(text, str) or not text.strip():
        raise RowFault(f"an answer is {kind_of(text) if not isinstance(text, str) else 'empty'}, not text", WRONG_TYPE)
    if isinstance(place, bool) or not isinstance(place, int):
        raise RowFault(f"answer_start is {kind_of(place)}, not a whole number", WRONG_TYPE)
    if not 0 <= place < len(context) or context[place : place + len(text)] != text:
        there = context.find(text)
        where = f"; it is at {there}" if there >= 0 else "; the context does not have it"
        found = context[place : place + len(text)] if 0 <= place < len(context) else ""
        raise RowFault(f"the answer {text!r} is not at {place}, where {found!r} stands{where}", OFF)
    return place, text


FORMAT = Squad()
