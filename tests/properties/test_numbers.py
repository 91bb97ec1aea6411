"""Distances, schedules, figures and redaction, for any input."""

from __future__ import annotations

import os
from functools import cache
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score

from peftctl.crashlog import redact
from peftctl.evaluation import choices
from peftctl.nearest import distance, nearest
from peftctl.train.optim import schedule

word = st.text("abc_", max_size=7)


@cache
def edits(a: str, b: str) -> int:
    """Optimal string alignment by its defining recursion."""
    if not a or not b:
        return len(a) + len(b)
    ways = [edits(a[:-1], b) + 1, edits(a, b[:-1]) + 1, edits(a[:-1], b[:-1]) + (a[-1] != b[-1])]
    if len(a) > 1 and len(b) > 1 and a[-1] == b[-2] and a[-2] == b[-1]:
        ways.append(edits(a[:-2], b[:-2]) + 1)
    return min(ways)


@given(word, word)
@settings(max_examples=300, deadline=None)
def test_a_distance_is_the_fewest_edits(a: str, b: str) -> None:
    assert distance(a, b) == edits(a, b) == distance(b, a)
    assert (distance(a, b) == 0) == (a == b)


@given(word, st.lists(word, max_size=6))
def test_the_nearest_is_a_known_word_and_a_known_word_is_its_own_nearest(said: str, known: list[str]) -> None:
    found = nearest(said, known)
    assert found == "" or found in known
    if said in known:
        assert found.replace("-", "_") == said


@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 5000),
    st.data(),
)
def test_a_rate_rises_to_at_most_the_peak_and_then_never_rises(
    name: Any, ratio: float, steps: int, data: st.DataObject
) -> None:
    factor = schedule(name, ratio, steps)
    step = data.draw(st.integers(0, steps - 1))
    assert 0 < factor(step) <= 1
    warm = ratio * steps
    if step + 1 < warm:
        assert factor(step) < factor(step + 1)
    if step > warm + 1:
        assert factor(step) <= factor(step - 1)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
@settings(max_examples=60, deadline=None)
def test_figures_are_scikit_learn_s(pairs: list[tuple[int, int]]) -> None:
    guesses, answers = [g for g, _ in pairs], [a for _, a in pairs]
    made = choices.report(guesses, answers, "abcd")
    each = f1_score(answers, guesses, labels=range(4), average=None, zero_division=0.0)
    assert made["accuracy"] == pytest.approx(accuracy_score(answers, guesses), abs=1e-15)
    assert list(made["f1"].values()) == pytest.approx(list(each), abs=1e-15)
    assert made["macro_f1"] == pytest.approx(each.mean(), abs=1e-15)


secret = st.text("ab", min_size=6, max_size=9)


@given(st.dictionaries(st.sampled_from(["A_TOKEN", "B_KEY", "C_SECRET", "D_PASSWORD"]), secret, min_size=1))
def test_no_part_of_a_secret_is_left_in_a_redacted_text(secrets: dict[str, str]) -> None:
    with patch.dict(os.environ, secrets, clear=True):
        shown = redact("|".join([*secrets.values(), *reversed(secrets.values())]))
    for part in shown.split("|"):
        assert part.removeprefix("<").removesuffix(">") in secrets
