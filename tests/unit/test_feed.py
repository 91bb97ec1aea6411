"""Work is made once, in order, one step ahead, and its faults arrive where it is taken."""

from __future__ import annotations

import threading

import pytest

from peftctl.train.feed import Feed, Work


def work(step: int) -> Work:
    return Work((), float(step), 1.0, step, step, step, 1)


def test_every_step_gets_its_own_work_and_it_is_made_once() -> None:
    made: list[int] = []
    with Feed(lambda step: (made.append(step), work(step))[1], 5) as feed:
        assert [feed.take(step).tokens for step in range(5)] == [0, 1, 2, 3, 4]
    assert made == [0, 1, 2, 3, 4]


def test_the_next_step_is_made_while_this_one_is_used() -> None:
    begun = threading.Event()

    def make(step: int) -> Work:
        if step == 1:
            begun.set()
        return work(step)

    with Feed(make, 3) as feed:
        feed.take(0)
        assert begun.wait(5)


def test_a_fault_arrives_at_the_step_whose_work_it_is() -> None:
    def make(step: int) -> Work:
        if step == 1:
            raise ValueError("row 7")
        return work(step)

    with Feed(make, 3) as feed:
        feed.take(0)
        with pytest.raises(ValueError, match="row 7"):
            feed.take(1)


def test_what_was_made_ahead_is_forgotten_when_micro_batches_change() -> None:
    size = [8]
    with Feed(lambda step: Work((), 1.0, 1.0, size[0], 0, 0, 1), 4) as feed:
        assert feed.take(0).tokens == 8
        feed.take(1)
        size[0] = 4
        feed.forget()
        assert feed.take(1).tokens == 4
        assert feed.take(2).tokens == 4
