"""Scores as their fields define them, written apart from peftctl's own so that one can be checked by the other."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import accuracy_score, f1_score


def classes(truth: Sequence[str], guesses: Sequence[str]) -> dict[str, float]:
    """Accuracy, and the plain mean of F1 over all classes that either has."""
    f1 = f1_score(truth, guesses, labels=sorted({*truth, *guesses}), average="macro", zero_division=0)
    return {"accuracy": float(accuracy_score(truth, guesses)), "macro_f1": float(f1)}


def chunks(tags: Sequence[str]) -> set[tuple[int, int, str]]:
    """(first, last, kind) of the spans in B-, I-, O tags by the rules of conlleval: an I- that goes on from nothing, or
    from a span of another kind, begins one."""
    found = set()
    begun: tuple[int, str] | None = None
    for at, tag in enumerate([*tags, "O"]):
        mark, _, kind = tag.partition("-")
        if begun and (mark != "I" or kind != begun[1]):
            found.add((begun[0], at - 1, begun[1]))
            begun = None
        if mark in ("B", "I") and not begun:
            begun = at, kind
    return found


def entities(truth: Sequence[Sequence[str]], guesses: Sequence[Sequence[str]]) -> dict[str, float]:
    """Precision, recall and F1 of spans; one counts when its borders and its kind are right."""
    wanted = {(row, *chunk) for row, tags in enumerate(truth) for chunk in chunks(tags)}
    given = {(row, *chunk) for row, tags in enumerate(guesses) for chunk in chunks(tags)}
    right = len(wanted & given)
    return {
        "entity_precision": right / max(1, len(given)),
        "entity_recall": right / max(1, len(wanted)),
        "entity_f1": 2 * right / max(1, len(given) + len(wanted)),
    }


def answers(truth: Sequence[Sequence[str]], guesses: Sequence[str]) -> dict[str, float]:
    """Exact match and F1 of words as SQuAD 2.0's own script has them; "" is no answer, as is an empty list."""
    exact, f1 = [], []
    for wanted, given in zip(truth, guesses, strict=True):
        each = [text for text in wanted if _squad(text)] or [""]
        exact.append(max(float(_squad(text) == _squad(given)) for text in each))
        f1.append(max(_word_f1(_squad(text).split(), _squad(given).split()) for text in each))
    has = np.array([bool(wanted) for wanted in truth])
    scores: dict[str, float] = {}
    for name, rows in (("", has | True), ("answered_", has), ("unanswered_", ~has)):
        scores[f"{name}exact_match"] = float(np.mean(np.array(exact)[rows]))
        scores[f"{name}f1"] = float(np.mean(np.array(f1)[rows]))
    return scores


def _squad(text: str) -> str:
    """Lower case, without punctuation, articles and more than one space."""
    text = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _word_f1(wanted: Sequence[str], given: Sequence[str]) -> float:
    if not wanted or not given:
        return float(wanted == given)
    shared = sum((Counter(wanted) & Counter(given)).values())
    return 2 * shared / (len(wanted) + len(given))


def retrieval(likeness: npt.NDArray[Any]) -> dict[str, float]:
    """Of a matrix [anchors, positives] with the right ones on its diagonal; of equal ones the right one comes last."""
    rank = (likeness >= np.diag(likeness)[:, None]).sum(axis=1)
    return {
        "recall@1": float(np.mean(rank <= 1)),
        "recall@10": float(np.mean(rank <= 10)),
        "mrr": float(np.mean(1 / rank)),
    }


def texts(truth: Sequence[str], guesses: Sequence[str]) -> dict[str, float]:
    """Exact match; chrF and BLEU as sacrebleu has them; words to change for each word wanted (the error rate)."""
    import sacrebleu

    pairs = list(zip(truth, guesses, strict=True))
    changes = sum(distance(wanted.split(), given.split()) for wanted, given in pairs)
    return {
        "exact_match": float(np.mean([wanted == given for wanted, given in pairs])),
        "chrf": float(sacrebleu.corpus_chrf(list(guesses), [list(truth)]).score),
        "bleu": float(sacrebleu.corpus_bleu(list(guesses), [list(truth)]).score),
        "error_rate": changes / sum(len(wanted.split()) for wanted in truth),
    }


def distance(one: Sequence[str], two: Sequence[str]) -> int:
    """How few insertions, deletions and replacements make one of the other (Levenshtein)."""
    row = list(range(len(two) + 1))
    for at, left in enumerate(one, 1):
        last, row[0] = row[0], at
        for place, right in enumerate(two, 1):
            last, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, last + (left != right))
    return row[-1]


def rounded(table: dict[str, dict[str, float]], places: int = 4) -> dict[str, dict[str, float]]:
    return {name: {key: round(value, places) for key, value in row.items()} for name, row in table.items()}


def flat(rows: Iterable[Sequence[str]]) -> list[str]:
    return [each for row in rows for each in row]
