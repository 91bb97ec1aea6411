"""The order of rows, against SplitMix64 written out in plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from peftctl.data.order import derived_seed, order

MASK = 2**64 - 1
STEP = 0x9E3779B97F4A7C15


def mix(value: int) -> int:
    """SplitMix64's finaliser, as published, on Python's own integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def expected(seed: int, epoch: int, rows: int) -> list[int]:
    stream = mix((seed * STEP + epoch) & MASK)
    keys = [mix((stream + STEP * (index + 1)) & MASK) for index in range(rows)]
    return sorted(range(rows), key=lambda index: keys[index])


def test_the_oracle_is_splitmix64() -> None:
    """The first numbers of SplitMix64 from seed 0, as its reference implementation prints them."""
    assert [mix((STEP * n) & MASK) for n in (1, 2, 3)] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@pytest.mark.parametrize("seed", [0, 1, 42, 2**31, 2**32 - 1])
@pytest.mark.parametrize("epoch", [0, 1, 7, 2**32 - 1])
@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_the_order_is_by_splitmix64_s_key(seed: int, epoch: int, rows: int) -> None:
    assert order(seed, epoch, rows).tolist() == expected(seed, epoch, rows)


def test_the_order_never_changes_between_versions() -> None:
    """By the reference numbers above, 3 keys from seed 0: the third is the smallest, the first the largest."""
    assert order(0, 0, 3).tolist() == [2, 1, 0]


def test_no_rows_have_an_order_too() -> None:
    assert order(0, 0, 0).tolist() == []


def test_every_row_comes_first_about_equally_often() -> None:
    """Chi-square over 6000 epochs of 6 rows; 5 degrees of freedom, 0.1 % point 20.5."""
    counts = np.bincount([order(3, epoch, 6)[0] for epoch in range(6000)], minlength=6)
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5


def test_orders_of_different_seeds_or_epochs_are_unrelated() -> None:
    """Rank correlations of 1000 rows have a standard deviation of 1/sqrt(999); five of them is never seen."""
    orders = [order(seed, epoch, 1000) for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    ranks = np.argsort(np.array(orders), axis=1)
    correlations = np.corrcoef(ranks)[np.triu_indices(len(orders), 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(999)


def test_a_derived_seed_is_a_chain_of_mixes() -> None:
    state = mix((5 * STEP) & MASK)
    for part in (1, 9, 0):
        state = mix((state + part * STEP + 1) & MASK)
    assert derived_seed(5, 1, 9, 0) == state >> 1


def test_derived_seeds_differ_in_every_part_and_fit_torch() -> None:
    seeds = {derived_seed(s, a, b, c) for s in range(4) for a in range(3) for b in range(20) for c in range(3)}
    seeds |= {derived_seed(s, a) for s in range(4) for a in range(3)} | {derived_seed(s) for s in range(4)}
    assert len(seeds) == 4 * 3 * 20 * 3 + 12 + 4
    assert all(0 <= seed < 2**63 for seed in seeds)
