"""Answers in words against those that are right, by the rules of SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

ARTICLES = re.compile(r"\b(a|an|the)\b")


def scored(found: Sequence[tuple[str, Sequence[str]]]) -> dict[str, Any]:
    """Means over questions; ``found``: what was answered to each, and what would be right, nothing if that is.

    With several right answers the best counts. Where some question has no answer, its two kinds are told apart too.
    """
    exact = [max(_exact(answer, each) for each in _allowed(right)) for answer, right in found]
    f1 = [max(_f1(answer, each) for each in _allowed(right)) for answer, right in found]
    scores: dict[str, Any] = {"exact_match": _mean(exact), "f1": _mean(f1)}
    has = [_allowed(right) != [""] for _, right in found]
    if all(has):
        return scores
    return {
        **scores,
        "answered_exact_match": _mean([score for score, known in zip(exact, has, strict=True) if known]),
        "answered_f1": _mean([score for score, known in zip(f1, has, strict=True) if known]),
        "no_answer_accuracy": _mean([score for score, known in zip(exact, has, strict=True) if not known]),
    }


def normalised(text: str) -> str:
    """Lower case, without punctuation and articles, single spaces."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", text).split())


def _allowed(right: Sequence[str]) -> list[str]:
    return [each for each in right if normalised(each)] or [""]


def _exact(answer: str, right: str) -> float:
    return float(normalised(answer) == normalised(right))


def _f1(answer: str, right: str) -> float:
    """F1 of words, each as often as it stands there; where one side has none, whether both have."""
    one, other = normalised(answer).split(), normalised(right).split()
    if not one or not other:
        return float(one == other)
    both = (Counter(one) & Counter(other)).total()
    return 2 * both / (len(one) + len(other))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
