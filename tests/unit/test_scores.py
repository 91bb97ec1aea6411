"""Metrics on cases worked out by hand, and on random ones beside the reference libraries."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch

from peftctl.tasks.answers import normalised, scored
from peftctl.tasks.ranks import retrieved
from peftctl.tasks.scores import classified, correlated, entities, several
from peftctl.tasks.texts import exact_match, overlaps

RANDOM = 30
WORDS = ("the", "a", "cat", "dog", "Sat.", "on", "mat,", "42", "über", "can't")


# Answers: SQuAD


@pytest.mark.parametrize(("answer", "right", "exact", "f1"), [
    ("the Cat", ["cat."], 1.0, 1.0),  # articles, case and punctuation say nothing
    ("", ["cat"], 0.0, 0.0),  # nothing answered
    ("cat", [], 0.0, 0.0),  # there was nothing to answer
    ("", [], 1.0, 1.0),
    ("the", [], 1.0, 1.0),  # an article alone is nothing
    ("red cat", ["cat"], 0.0, 2 / 3),  # precision 1/2, recall 1
    ("red cat", ["dog", "red cat", "cat"], 1.0, 1.0),  # the best of several
    ("cat cat", ["cat"], 0.0, 2 / 3),  # a word counts as often as it is there
    ("dog", ["cat"], 0.0, 0.0),
])  # fmt: skip
def test_an_answer_is_scored_as_squad_has_it(answer: str, right: list[str], exact: float, f1: float) -> None:
    found = scored([(answer, right)])
    assert (found["exact_match"], found["f1"]) == (exact, pytest.approx(f1))


def test_questions_without_an_answer_are_told_apart_where_there_are_any() -> None:
    found = scored([("cat", ["cat"]), ("", []), ("dog", []), ("", ["cat"])])
    assert found["exact_match"] == 0.5
    assert found["answered_exact_match"] == 0.5
    assert found["no_answer_accuracy"] == 0.5
    assert "no_answer_accuracy" not in scored([("cat", ["cat"])])
    assert scored([("", [])])["answered_f1"] is None


def test_words_are_normalised() -> None:
    assert normalised("  The U.S.A.,  an a-b ") == "usa ab"


# Ranks


def vectors(*angles: float) -> list[Any]:
    return [torch.tensor([math.cos(angle), math.sin(angle)]) for angle in angles]


def test_ranks_by_hand() -> None:
    # Anchors at 0 and 1; what belongs to them at 0.3 and 0.2: the second's is nearer to the first than its own.
    first, second = vectors(0.0, 0.3), vectors(1.0, 0.2)
    found = retrieved([first, second], [((1,), (2,)), ((3,), (4,))], 1.0)
    assert (found["recall_at_1"], found["recall_at_10"], found["mrr"]) == (0.0, 1.0, 0.5)
    losses = []
    for anchor, own, other in ((0.0, 0.3, 0.2), (1.0, 0.2, 0.3)):
        a, b = math.cos(anchor - own), math.cos(anchor - other)
        losses.append(math.log(math.exp(a) + math.exp(b)) - a)
    assert found["loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)


def test_a_tie_counts_against_it() -> None:
    same = [vectors(0.0, 0.5), vectors(0.0, 0.5)]
    assert retrieved(same, [((1,), (2,)), ((3,), (4,))], 1.0)["recall_at_1"] == 0.0
    assert retrieved(same, [((1,), (2,)), ((3,), (4,))], 1.0)["mrr"] == 0.5


def test_what_is_right_for_the_same_anchor_too_is_no_wrong_answer_nor_is_the_anchor() -> None:
    rows = [vectors(0.0, 0.4), vectors(0.0, 0.1), vectors(2.0, 0.0)]
    texts = [((1,), (2,)), ((1,), (3,)), ((9,), (1,))]  # the third's belongs to it and says what the others ask
    assert retrieved(rows, texts, 1.0)["recall_at_1"] == pytest.approx(2 / 3)


def test_named_negatives_are_candidates() -> None:
    assert retrieved([vectors(0.0, 0.3, 0.1)], [((1,), (2,), (3,))], 1.0)["recall_at_1"] == 0.0


# Written texts


def test_exact_match_by_hand() -> None:
    assert exact_match([("a", "a"), (" a\n", "a"), ("", "a"), ("A", "a")]) == 0.5


def test_overlaps_by_hand() -> None:
    found = overlaps([("the cat sat", "the cat sat"), ("", "a dog")])
    assert found["rouge1"] == found["rouge2"] == found["rougeL"] == 0.5
    assert overlaps([("cat the", "the cat")])["rougeL"] == 0.5
    assert overlaps([("cat the", "the cat")])["rouge1"] == 1.0


def test_overlaps_are_the_reference_library_s() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    chance, scorer = random.Random(0), RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=False)
    pairs = [tuple(" ".join(chance.choices(WORDS, k=chance.randint(0, 9))) for _ in range(2)) for _ in range(RANDOM)]
    found = overlaps(pairs)  # type: ignore[arg-type]
    for name in ("rouge1", "rouge2", "rougeL"):
        wanted = [scorer.score(right, written)[name].fmeasure for written, right in pairs]
        assert found[name] == pytest.approx(sum(wanted) / len(wanted), abs=1e-12)


# Classes


def test_classes_by_hand() -> None:
    found = classified([0, 0, 0], [0, 0, 1], ["a", "b", "c"])  # all one class, and one that is not there
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["classes"]["a"] == {
        "precision": pytest.approx(2 / 3),
        "recall": 1.0,
        "f1": pytest.approx(0.8),
        "rows": 2,
    }
    assert found["classes"]["b"]["f1"] == 0.0
    assert found["macro_f1"] == pytest.approx(0.8 / 3)
    assert found["majority"] == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx(0.8 / 3)}
    assert classified([0], [1], ["a", "b"])["majority"] == {"accuracy": 1.0, "macro_f1": 0.5}


def test_classes_are_the_reference_library_s() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    chance = random.Random(0)
    for _ in range(RANDOM):
        truth, guesses = ([chance.randrange(4) for _ in range(chance.randint(1, 20))] for _ in range(2))
        size = min(len(truth), len(guesses))
        truth, guesses = truth[:size], guesses[:size]
        found = classified(guesses, truth, list("abcd"))
        wanted = f1_score(truth, guesses, labels=range(4), average="macro", zero_division=0.0)
        assert found["macro_f1"] == pytest.approx(wanted)
        assert found["accuracy"] == accuracy_score(truth, guesses)


def test_several_labels_are_the_reference_library_s() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    chance = random.Random(0)
    for _ in range(RANDOM):
        truth, guesses = ([[chance.random() < 0.3 for _ in range(3)] for _ in range(8)] for _ in range(2))
        found = several(guesses, truth, list("abc"))
        assert found["micro_f1"] == pytest.approx(f1_score(truth, guesses, average="micro", zero_division=0.0))
        assert found["macro_f1"] == pytest.approx(f1_score(truth, guesses, average="macro", zero_division=0.0))
        assert found["accuracy"] == pytest.approx(accuracy_score(truth, guesses))


def test_correlations_are_the_reference_library_s() -> None:
    from scipy.stats import pearsonr, spearmanr

    chance = random.Random(0)
    for _ in range(RANDOM):
        one, other = ([float(chance.randrange(6)) for _ in range(12)] for _ in range(2))  # with ties
        found = correlated(one, other)
        assert found["pearson"] == pytest.approx(pearsonr(one, other).statistic)
        assert found["spearman"] == pytest.approx(spearmanr(one, other).statistic)
    assert correlated([1.0, 1.0], [0.0, 2.0])["pearson"] is None


# Entities


@pytest.mark.parametrize(("guesses", "truth", "f1"), [
    ("O O O", "O B-P I-P", 0.0),
    ("O B-P I-P", "O B-P I-P", 1.0),
    ("O B-P O", "O B-P I-P", 0.0),  # the end differs
    ("O B-Q I-Q", "O B-P I-P", 0.0),  # the kind differs
    ("B-P I-P B-P", "B-P I-P I-P", 0.0),
    ("O I-P I-P", "O B-P I-P", 1.0),  # what goes on with nothing begins
    ("B-P B-P O", "B-P B-P O", 1.0),  # two, side by side
])  # fmt: skip
def test_entities_by_hand(guesses: str, truth: str, f1: float) -> None:
    assert entities([guesses.split()], [truth.split()])["f1"] == f1


def test_entities_are_the_reference_library_s() -> None:
    from seqeval.metrics import f1_score, precision_score, recall_score

    chance, tags = random.Random(0), ("O", "O", "B-P", "I-P", "B-Q", "I-Q")
    for _ in range(RANDOM):
        truth, guesses = ([[chance.choice(tags) for _ in range(9)] for _ in range(4)] for _ in range(2))
        found = entities(guesses, truth)
        assert found["f1"] == pytest.approx(f1_score(truth, guesses))
        assert found["precision"] == pytest.approx(precision_score(truth, guesses))
        assert found["recall"] == pytest.approx(recall_score(truth, guesses))
