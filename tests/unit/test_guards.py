"""Training that trains nothing, or whose numbers are not finite, is stopped."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftctl.errors import DivergedError
from peftctl.train.guards import GradientGuard, SkipGuard


def parameter(*, trained: bool = True) -> Any:
    return torch.nn.Parameter(torch.ones(2), requires_grad=trained)


def test_a_model_with_nothing_to_train_is_refused() -> None:
    with pytest.raises(DivergedError) as stopped:
        GradientGuard([("frozen", parameter(trained=False))], 10)
    assert str(stopped.value) == "nothing is trained: no tensor takes gradients"


def test_a_tensor_that_the_backward_pass_does_not_reach_stops_the_first_update() -> None:
    reached, left_out = parameter(), parameter()
    guard = GradientGuard([("a", reached), ("b", left_out), ("frozen", parameter(trained=False))], 100)
    reached.grad = torch.ones(2)
    with pytest.raises(DivergedError) as stopped:
        guard.after_backward()
    assert str(stopped.value) == "the backward pass does not reach b; nothing was published"


def test_a_gradient_that_stays_zero_stops_after_ten_updates() -> None:
    moving, still = parameter(), parameter()
    guard = GradientGuard([("moving", moving), ("still", still)], 100)
    for _ in range(9):
        moving.grad, still.grad = torch.ones(2), torch.zeros(2)
        guard.after_backward()
        assert guard.watching
    with pytest.raises(DivergedError) as stopped:
        guard.after_backward()
    assert str(stopped.value) == "the gradient stayed zero for 10 updates of still; nothing was published"


def test_a_gradient_that_comes_late_is_enough() -> None:
    slow = parameter()
    guard = GradientGuard([("slow", slow)], 100)
    slow.grad = torch.zeros(2)
    for _ in range(9):
        guard.after_backward()
    slow.grad = torch.tensor([0.0, 1e-30])
    guard.after_backward()
    assert not guard.watching


def test_a_short_run_is_judged_at_its_end() -> None:
    still = parameter()
    still.grad = torch.zeros(2)
    guard = GradientGuard([("still", still)], 3)
    guard.after_backward()
    guard.after_backward()
    with pytest.raises(DivergedError, match="stayed zero for 3 updates of still"):
        guard.after_backward()


def test_a_run_of_one_update_cannot_show_a_zero_gradient() -> None:
    still = parameter()
    still.grad = torch.zeros(2)
    guard = GradientGuard([("still", still)], 1)
    guard.after_backward()
    assert not guard.watching


def test_many_silent_tensors_are_named_in_part() -> None:
    guard = GradientGuard([(f"t{n}", parameter()) for n in range(7)], 5)
    with pytest.raises(DivergedError) as stopped:
        guard.after_backward()
    assert str(stopped.value) == (
        "the backward pass does not reach t0, t1, t2, t3, t4 and 2 more; nothing was published"
    )


def test_three_skipped_updates_in_a_row_stop_the_run() -> None:
    guard = SkipGuard()
    guard.skipped(4)
    guard.skipped(5)
    with pytest.raises(DivergedError) as stopped:
        guard.skipped(6)
    assert stopped.value.message == "the loss or its gradient was not finite at steps 4 to 6; nothing was published"
    assert guard.total == 3


def test_an_update_between_starts_the_count_again() -> None:
    guard = SkipGuard()
    for step in range(1, 20):
        if step % 3:
            guard.skipped(step)
        else:
            guard.ok()
    assert guard.total == 13
