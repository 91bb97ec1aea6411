"""Nothing is lost and nothing doubled, whatever the numbers."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from peftctl.data.batches import micro_batches, plan
from peftctl.data.order import derived_seed, order

seeds = st.integers(0, 2**32 - 1)


@given(seeds, st.integers(0, 2**32 - 1), st.integers(0, 300))
def test_an_order_is_a_permutation(seed: int, epoch: int, rows: int) -> None:
    assert sorted(order(seed, epoch, rows).tolist()) == list(range(rows))


@given(seeds, st.integers(0, 1000), st.integers(1, 100), st.integers(1, 100))
def test_rows_kept_keep_their_order_when_more_are_added(seed: int, epoch: int, rows: int, more: int) -> None:
    """A row's key does not depend on how many rows there are."""
    longer = [index for index in order(seed, epoch, rows + more).tolist() if index < rows]
    assert longer == order(seed, epoch, rows).tolist()


@given(seeds, st.lists(st.integers(0, 2**40), max_size=4))
def test_a_derived_seed_fits_sixty_three_bits_and_repeats(seed: int, parts: list[int]) -> None:
    assert 0 <= derived_seed(seed, *parts) < 2**63
    assert derived_seed(seed, *parts) == derived_seed(seed, *parts)


@given(st.integers(1, 40), st.integers(1, 50), seeds, st.integers(1, 5))
def test_every_row_is_taken_once_an_epoch(rows: int, batch: int, seed: int, epochs: int) -> None:
    made = plan(rows, batch, seed, epochs=epochs, max_steps=None)
    taken = [index for step in range(made.steps) for index in made.indices(step)]
    assert len(taken) == rows * epochs
    for epoch in range(epochs):
        assert sorted(taken[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert made.epoch(made.steps) == epochs


@given(st.integers(1, 40), st.integers(1, 50), seeds, st.integers(1, 20))
def test_a_run_of_steps_takes_each_row_as_often_as_any_other_give_or_take_one(
    rows: int, batch: int, seed: int, steps: int
) -> None:
    made = plan(rows, batch, seed, epochs=None, max_steps=steps)
    assert made.steps == steps
    counts = Counter(index for step in range(steps) for index in made.indices(step))
    taken = [counts[index] for index in range(rows)]
    assert sum(taken) == steps * batch
    assert max(taken) - min(taken) <= 1


@given(st.integers(1, 30), st.integers(1, 40), seeds, st.floats(0.01, 6), st.data())
def test_a_step_s_rows_do_not_depend_on_what_was_taken_before(
    rows: int, batch: int, seed: int, epochs: float, data: st.DataObject
) -> None:
    made = plan(rows, batch, seed, epochs=epochs, max_steps=None)
    forward = [made.indices(step) for step in range(made.steps)]
    step = data.draw(st.integers(0, made.steps - 1))
    assert plan(rows, batch, seed, epochs=epochs, max_steps=None).indices(step) == forward[step]
    assert all(len(taken) == batch for taken in forward[:-1])
    assert 1 <= len(forward[-1]) <= batch


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(0, 200))
@settings(max_examples=200)
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], tokens: int) -> None:
    groups = micro_batches(lengths, tokens)
    assert Counter(index for group in groups for index in group) == Counter(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or max(lengths[index] for index in group) * len(group) <= tokens
    longest = [lengths[group[0]] for group in groups]
    assert longest == sorted(longest, reverse=True)
    # No group could have taken the next one's first row too.
    for group, following in pairwise(groups):
        assert lengths[group[0]] * (len(group) + 1) > tokens
        assert lengths[following[0]] <= min(lengths[index] for index in group)
