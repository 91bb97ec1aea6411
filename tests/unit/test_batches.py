"""Which rows a step takes, and how they are cut to fit."""

from __future__ import annotations

from collections import Counter

import pytest

from peftctl.data.batches import Plan, micro_batches, plan
from peftctl.data.order import order


def test_an_epoch_takes_every_row_once_in_the_epoch_s_order() -> None:
    made = plan(10, 4, 7, epochs=1, max_steps=None)
    assert made.steps == 3
    assert [len(made.indices(step)) for step in range(3)] == [4, 4, 2]
    assert [index for step in range(3) for index in made.indices(step)] == order(7, 0, 10).tolist()


def test_epochs_follow_each_other_without_a_gap() -> None:
    made = plan(5, 4, 0, epochs=3, max_steps=None)
    assert made.steps == 4
    taken = [index for step in range(made.steps) for index in made.indices(step)]
    assert taken == [index for epoch in range(3) for index in order(0, epoch, 5).tolist()]


def test_a_batch_larger_than_the_data_takes_rows_of_several_epochs() -> None:
    made = plan(3, 10, 1, epochs=None, max_steps=2)
    first = made.indices(0)
    assert first == [*order(1, 0, 3), *order(1, 1, 3), *order(1, 2, 3), *order(1, 3, 3)[:1]]
    assert len(made.indices(1)) == 10


def test_a_part_of_an_epoch_is_that_part_of_its_rows() -> None:
    made = plan(100, 8, 0, epochs=0.25, max_steps=None)
    assert (made.total, made.steps) == (25, 4)
    assert [len(made.indices(step)) for step in range(4)] == [8, 8, 8, 1]


def test_the_shortest_run_is_one_row() -> None:
    assert plan(3, 8, 0, epochs=0.001, max_steps=None).total == 1


def test_steps_are_full_batches() -> None:
    made = plan(10, 4, 0, epochs=None, max_steps=7)
    assert made.steps == 7
    assert {len(made.indices(step)) for step in range(7)} == {4}


def test_a_step_s_rows_depend_on_nothing_but_seed_and_step() -> None:
    made, other = plan(50, 8, 3, epochs=5, max_steps=None), plan(50, 8, 3, epochs=2, max_steps=None)
    forward = [made.indices(step) for step in range(12)]
    assert [other.indices(step) for step in reversed(range(12))] == forward[::-1]
    assert plan(50, 8, 4, epochs=5, max_steps=None).indices(0) != forward[0]


def test_epochs_done_are_counted_in_rows() -> None:
    made = Plan(rows=10, batch_size=4, total=25, seed=0)
    assert [made.epoch(step) for step in range(8)] == [0.0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.5]


@pytest.mark.parametrize(
    ("lengths", "tokens", "groups"),
    [
        ((3, 3, 3, 3), 6, [[3, 3], [3, 3]]),
        ((3, 3, 3), 9, [[3, 3, 3]]),
        ((5, 1, 1), 5, [[5], [1, 1]]),
        ((5, 1, 1), 10, [[5, 1], [1]]),
        ((1, 5, 4, 2), 10, [[5, 4], [2, 1]]),
        ((20, 1), 8, [[20], [1]]),
        ((20, 1), 0, [[20], [1]]),
        ((), 8, []),
    ],
)
def test_groups_hold_their_longest_row_as_often_as_fits(
    lengths: tuple[int, ...], tokens: int, groups: list[list[int]]
) -> None:
    assert [[lengths[index] for index in group] for group in micro_batches(lengths, tokens)] == groups


def test_no_row_is_lost_or_doubled() -> None:
    lengths = [1 + 7 * n % 23 for n in range(200)]
    assert Counter(index for group in micro_batches(lengths, 64) for index in group) == Counter(range(200))


def test_rows_of_one_length_keep_their_order() -> None:
    assert micro_batches([4, 4, 4, 4], 8) == [[0, 1], [2, 3]]
    assert micro_batches([2, 4, 2, 4], 8) == [[1, 3], [0, 2]]
