"""Rows longer than the longest: what each way leaves of them, and that none learns a token twice."""

from __future__ import annotations

from itertools import pairwise
from typing import get_args

import pytest

from peftctl.data.encode import Encoding, encode_some, outcome
from peftctl.example import Segment, Segments
from peftctl.recipe.schema import DataSettings
from peftctl.tasks import TASKS
from peftctl.tasks.overlong import WAYS, fit
from peftctl.text.tokens import Encoded
from tests.unit import kinds

BEGIN = 1


def row(length: int, learned: set[int] | None = None, *, begins: bool = False) -> Encoded:
    """Ids that differ, 100 and up; ``learned`` are the places of targets, all but the first if not given."""
    ids = tuple(BEGIN if begins and at == 0 else 100 + at for at in range(length))
    places = set(range(1, length)) if learned is None else learned
    return Encoded(ids, tuple(float(at in places) for at in range(length)))


def targets(parts: list[Encoded]) -> list[int]:
    """Every learned id, in order: what has something before it and a weight."""
    found = []
    for part in parts:
        pairs = list(zip(part.ids, part.weights, strict=True))
        found += [number for number, weight in pairs[1:] if weight]
    return found


def test_the_recipe_s_ways_are_those_there_are() -> None:
    named, none = get_args(DataSettings.model_fields["overlong"].annotation)
    assert set(WAYS) == set(get_args(named)) == set(TASKS["causal_lm"].ways)
    assert none is type(None)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("begin", [None, BEGIN])
def test_a_row_of_just_the_longest_length_is_left_as_it_is(how: str, begin: int | None) -> None:
    given = row(9, begins=True)
    assert fit(given, 9, how, begin) == [given]
    assert fit(given, 8, how, begin) != [given]


def test_dropping_leaves_nothing() -> None:
    assert fit(row(10), 9, "drop", None) == []


@pytest.mark.parametrize("begins", [True, False])
def test_truncating_the_end_keeps_the_beginning(begins: bool) -> None:
    given = row(12, begins=begins)
    assert fit(given, 8, "truncate_end", BEGIN) == [Encoded(given.ids[:8], given.weights[:8])]


def test_truncating_the_start_keeps_the_end() -> None:
    given = row(12)
    for begin in (None, BEGIN):  # a row that does not begin so gets no such token
        assert fit(given, 8, "truncate_start", begin) == [Encoded(given.ids[4:], given.weights[4:])]


def test_truncating_the_start_keeps_the_token_that_begins_texts() -> None:
    given = row(12, begins=True)
    (kept,) = fit(given, 8, "truncate_start", BEGIN)
    assert kept.ids == (BEGIN, *given.ids[5:])
    assert kept.weights == (0.0, *given.weights[5:])
    assert len(kept) == 8


@pytest.mark.parametrize("longest", [8, 9, 13])
@pytest.mark.parametrize("length", range(9, 50))
def test_splitting_loses_no_learned_token_and_repeats_none(length: int, longest: int) -> None:
    for learned in (None, set(range(1, length, 3)), set(range(length // 2, length))):
        given = row(length, learned)
        parts = fit(given, longest, "split", None)
        assert targets(parts) == targets([given])
        assert all(2 <= len(part) <= longest for part in parts)
        assert all(len(part) == longest for part in parts[:-1])
        # Each begins with the last token of the one before it, which is its context and learned there alone.
        for one, following in pairwise(parts):
            assert following.ids[0] == one.ids[-1]
            assert following.weights[0] == 0.0
        assert parts[0].ids + tuple(n for part in parts[1:] for n in part.ids[1:]) == given.ids


def test_splitting_keeps_weights_that_are_not_one() -> None:
    given = Encoded(tuple(range(20)), tuple(0.25 * at for at in range(20)))
    parts = fit(given, 8, "split", None)
    assert [weight for part in parts for weight in part.weights[1:]] == list(given.weights[1:])


def test_a_tokenizer_s_own_first_token_stays_where_rows_are_cut_at_their_start() -> None:
    tokenizer = kinds.sentencepiece(prefix=False, begins=True)
    for how, left in (("truncate_start", "<s>ghijkxyz</s>"), ("truncate_end", "<s>abcdefghi")):
        encoding = Encoding(TASKS["causal_lm"], tokenizer, 10, overlong=how)
        (made,) = encode_some([Segments((Segment("abc", 1.0), Segment("defghijk"), Segment("xyz", 1.0)))], encoding)
        (kept,) = outcome(made, encoding).rows
        assert len(kept) == 10
        assert kinds.decode(tokenizer, kept.ids) == left


def made(how: str, *rows: Encoded, longest: int = 8) -> tuple[list[int], dict[str, int], int, int]:
    """Lengths of the rows that are left, the parts left out, how many were cut, whether one was split."""
    encoding = Encoding(TASKS["causal_lm"], kinds.byte_level(), longest, overlong=how)
    found = outcome(list(rows), encoding)
    return [len(each) for each in found.rows], dict(found.parts), found.cut, found.split


@pytest.mark.parametrize(
    ("how", "rows", "expected"),
    [
        ("drop", [row(12)], ([], {"longer than max_length": 1}, 0, 0)),
        ("drop", [row(8), row(9)], ([8], {"longer than max_length": 1}, 0, 0)),
        ("drop", [row(8, set())], ([], {"nothing to learn": 1}, 0, 0)),
        ("truncate_end", [row(12)], ([8], {}, 1, 0)),
        ("truncate_end", [row(12, {9})], ([], {"nothing to learn": 1}, 0, 0)),
        ("truncate_end", [row(12, {7}), row(20, {8}), row(3)], ([8, 3], {"nothing to learn": 1}, 1, 0)),
        ("truncate_start", [row(12, {3})], ([], {"nothing to learn": 1}, 0, 0)),
        # The first token that is kept has nothing before it.
        ("truncate_start", [row(12, {4})], ([], {"nothing to learn": 1}, 0, 0)),
        ("truncate_start", [row(12, {5}), row(12, {11})], ([8, 8], {}, 2, 0)),
        ("split", [row(12)], ([8, 5], {}, 0, 1)),
        ("split", [row(12, {3})], ([8], {"nothing to learn": 1}, 0, 1)),
        ("split", [row(12, set())], ([], {"nothing to learn": 2}, 0, 1)),
        ("split", [row(8), row(15)], ([8, 8, 8], {}, 0, 1)),
    ],
)
def test_what_is_left_is_counted(
    how: str, rows: list[Encoded], expected: tuple[list[int], dict[str, int], int, int]
) -> None:
    assert made(how, *rows) == expected
