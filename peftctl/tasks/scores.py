"""Scores of guesses against the truth, each as its definition has it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def classified(guesses: Sequence[int], truth: Sequence[int], labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro F1 (the mean over all classes, 0 for one that was never right) and each class's figures; and what
    always guessing the commonest class (the first of equals) comes to, which any model has to beat."""
    commonest = max(range(len(labels)), key=truth.count)
    found = _classified(guesses, truth, labels)
    always = _classified([commonest] * len(truth), truth, labels)
    return {**found, "majority": {key: always[key] for key in ("accuracy", "macro_f1")}}


def _classified(guesses: Sequence[int], truth: Sequence[int], labels: Sequence[str]) -> dict[str, Any]:
    table = {label: _of_class([g == at for g in guesses], [t == at for t in truth]) for at, label in enumerate(labels)}
    right = sum(guess == true for guess, true in zip(guesses, truth, strict=True))
    return {
        "accuracy": right / len(truth),
        "macro_f1": sum(row["f1"] for row in table.values()) / len(table),
        "classes": table,
    }


def several(
    guesses: Sequence[Sequence[bool]], truth: Sequence[Sequence[float]], labels: Sequence[str]
) -> dict[str, Any]:
    """Of rows with several labels: how many are right in all of them, macro F1, micro F1 and each label's figures."""
    columns = [([row[at] for row in guesses], [bool(row[at]) for row in truth]) for at in range(len(labels))]
    table = {label: _of_class(*column) for label, column in zip(labels, columns, strict=True)}
    exact = sum(all(g == bool(t) for g, t in zip(a, b, strict=True)) for a, b in zip(guesses, truth, strict=True))
    flat = _of_class(*([value for column in columns for value in column[side]] for side in (0, 1)))
    return {
        "accuracy": exact / len(truth),
        "macro_f1": sum(row["f1"] for row in table.values()) / len(table),
        "micro_f1": flat["f1"],
        "classes": table,
    }


def correlated(guesses: Sequence[float], truth: Sequence[float]) -> dict[str, float | None]:
    """Pearson's and Spearman's correlation; None where one side is all the same."""
    return {
        "pearson": _pearson(guesses, truth),
        "spearman": _pearson(_ranks(guesses), _ranks(truth)),
        "mean_absolute_error": sum(abs(g - t) for g, t in zip(guesses, truth, strict=True)) / len(truth),
    }


def _of_class(guessed: Sequence[bool], true: Sequence[bool]) -> dict[str, float]:
    both = sum(g and t for g, t in zip(guessed, true, strict=True))
    precision = both / sum(guessed) if any(guessed) else 0.0
    recall = both / sum(true) if any(true) else 0.0
    f1 = 2 * precision * recall / (precision + recall) if both else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "rows": float(sum(true))}


def _pearson(one: Sequence[float], other: Sequence[float]) -> float | None:
    count = len(one)
    means = math.fsum(one) / count, math.fsum(other) / count
    a, b = [value - means[0] for value in one], [value - means[1] for value in other]
    size = math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))
    return math.fsum(x * y for x, y in zip(a, b, strict=True)) / size if size else None


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 1, ties sharing the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for at in order[start : end + 1]:
            ranks[at] = (start + end) / 2 + 1
        start = end + 1
    return ranks


def entities(guesses: Sequence[Sequence[str]], truth: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Precision, recall and F1 of whole spans, and F1 of each kind, by the rules of CoNLL-2000's conlleval: a span is
    right if its kind, beginning and end are; an I- that goes on with no span of its kind begins one."""
    found, true = ([(at, *span) for at, row in enumerate(side) for span in _spans(row)] for side in (guesses, truth))
    kinds = sorted({span[1] for span in (*found, *true)})
    table = {kind: _of_spans([s for s in found if s[1] == kind], [s for s in true if s[1] == kind]) for kind in kinds}
    return {**{name: value for name, value in _of_spans(found, true).items() if name != "rows"}, "classes": table}


def _spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(kind, first word, last word) of every span in a row of B-, I- and O."""
    spans: list[tuple[str, int, int]] = []
    open_kind, start = "", 0
    for at, tag in enumerate([*tags, "O"]):
        begins, kind = tag.partition("-")[0] == "B", tag.partition("-")[2]
        if open_kind and (begins or kind != open_kind):
            spans.append((open_kind, start, at - 1))
            open_kind = ""
        if kind and not open_kind:
            open_kind, start = kind, at
    return spans


def _of_spans(found: Sequence[Any], true: Sequence[Any]) -> dict[str, float]:
    both = len(set(found) & set(true))
    precision, recall = (both / len(side) if side else 0.0 for side in (found, true))
    f1 = 2 * precision * recall / (precision + recall) if both else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "rows": float(len(true))}
