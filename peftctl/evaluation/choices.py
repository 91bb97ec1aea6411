"""Which of some given answers a model finds likeliest, and how often that is the right one.

The score of an answer is the sum of the log-probabilities of its tokens, end of turn included, after the prompt
that inference would show: exactly the tokens that training learns for that answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from peftctl.data.collate import Collator
from peftctl.data.sources import Sourced
from peftctl.errors import DataError
from peftctl.evaluation.loss import evaluate
from peftctl.example import Conversation, RowFault, Segment, Segments
from peftctl.tasks import EncodedExample
from peftctl.text.tokens import Encoded

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Question:
    """A row asked with each answer: ``variants`` are the row's encodings, ``answer`` the right one's index."""

    variants: tuple[Encoded, ...]
    answer: int


def questions(rows: Sequence[Sourced], choices: Sequence[str], collate: Collator, max_length: int) -> list[Question]:
    """The rows with their last learned text replaced by each choice in turn; rows that are too long are left out.

    Raises DataError where a row's last learned text is none of the choices.
    """
    asked = []
    answers = [_answer(row, choices) for row in rows]
    examples = [_with_answer(row, choice) for row in rows for choice in choices]
    encoded = iter(collate.task.encode(examples, collate.tokenizer))
    for row, answer in zip(rows, answers, strict=True):
        variants = tuple(_sound(row, next(encoded)) for _ in choices)
        if max(len(variant) for variant in variants) <= max_length:
            asked.append(Question(variants, answer))
    if not asked:
        raise DataError("eval.choices: no held-out row is short enough to be scored")
    return asked


def _sound(row: Sourced, variant: EncodedExample) -> Encoded:
    if isinstance(variant, RowFault):
        raise DataError(f"{row.place}: {variant}")
    return variant[-1]  # only the last turn is learned, so there is one


def scores_of(of_variants: Sequence[Mapping[str, float]], choices: int) -> Scores:
    """Log-probability of each choice for each question, [questions, choices], from the sums over the variants."""
    return -np.array([row["loss"] for row in of_variants]).reshape(-1, choices)


def score(model: Any, asked: Sequence[Question], collate: Collator) -> Scores:
    """Log-probability of each choice for each question, [questions, choices]."""
    flat = [variant for question in asked for variant in question.variants]
    return scores_of(evaluate(model, flat, collate), len(asked[0].variants))


def classify(scores: Scores, answers: Sequence[int], choices: Sequence[str]) -> dict[str, Any]:
    """Accuracy and macro F1 of the likeliest choice (the first of equals), and F1 by choice."""
    return report(scores.argmax(axis=1), answers, choices)


def majority(answers: Sequence[int], choices: Sequence[str]) -> dict[str, Any]:
    """The same figures for always giving the commonest answer: what any model has to beat."""
    commonest = int(np.bincount(answers, minlength=len(choices)).argmax())
    return report(np.full(len(answers), commonest), answers, choices)


def report(guesses: npt.ArrayLike, answers: npt.ArrayLike, choices: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro F1 (the unweighted mean of each choice's F1; one never guessed nor right has 0), F1 by choice."""
    guessed, right = np.asarray(guesses), np.asarray(answers)
    by_choice = {}
    for index, choice in enumerate(choices):
        hits = int(((guessed == index) & (right == index)).sum())
        asked_or_guessed = int((guessed == index).sum() + (right == index).sum())
        by_choice[choice] = 2 * hits / asked_or_guessed if asked_or_guessed else 0.0
    return {
        "accuracy": float((guessed == right).mean()),
        "macro_f1": float(np.mean(list(by_choice.values()))),
        "f1": by_choice,
        "rows": len(right),
    }


def _answer(row: Sourced, choices: Sequence[str]) -> int:
    example = _spoken(row)
    text = example.turns[-1].content if isinstance(example, Conversation) else example.pieces[-1].text
    if text not in choices:
        raise DataError(
            f"{row.place}: ends with {text[:40]!r}, which is none of eval.choices ({', '.join(choices)})",
            hint="eval.choices is for rows whose last turn is always one of a few answers",
        )
    return list(choices).index(text)


def _spoken(row: Sourced) -> Conversation | Segments:
    if isinstance(row.example, Conversation | Segments):
        return row.example
    raise DataError(f"{row.place}: a {type(row.example).__name__} has no answer, as eval.choices needs")


def _with_answer(row: Sourced, choice: str) -> Conversation | Segments:
    """The row with ``choice`` for its last text, and only that text to be scored."""
    example = _spoken(row)
    if isinstance(example, Conversation):
        read = tuple(replace(turn, weight=0.0) for turn in example.turns[:-1])
        last = replace(example.turns[-1], content=choice, weight=1.0)
        return replace(example, turns=(*read, last))
    pieces = tuple(replace(piece, weight=0.0) for piece in example.pieces[:-1])
    return Segments((*pieces, Segment(choice, 1.0)), whole=example.whole)
