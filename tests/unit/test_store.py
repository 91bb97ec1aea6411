"""Rows in flat arrays come back as they went in."""

from __future__ import annotations

import pytest

from peftctl.data.store import store
from peftctl.text.tokens import Encoded

ROWS = [Encoded((5, 6, 7), (1.0, 0.0, 0.5)), Encoded((8,), (1.0,)), Encoded((70_000, 2), (0.0, 1.0))]


def test_rows_come_back_in_order_and_from_the_end() -> None:
    stored = store(iter(ROWS))
    assert list(stored) == ROWS
    assert stored[-1] == ROWS[-1]
    assert stored[1:] == ROWS[1:]
    assert stored.lengths.tolist() == [3, 1, 2]
    with pytest.raises(IndexError):
        stored[3]


def test_the_first_token_of_a_row_is_no_target() -> None:
    assert store(ROWS).supervised == sum(row.supervised for row in ROWS) == 2


def test_no_rows_at_all() -> None:
    assert list(store([])) == []
    assert store([]).supervised == 0
