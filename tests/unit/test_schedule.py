"""Learning-rate schedules against their formulas, and the optimizers of a recipe."""

from __future__ import annotations

import math
from typing import Any

import pytest

from peftctl.recipe.schema import ScheduleName, TrainSettings
from peftctl.train.optim import build_optimizer, schedule, set_rate

NAMES: list[ScheduleName] = ["constant", "linear", "cosine"]
each_name = pytest.mark.parametrize("name", NAMES)


@each_name
def test_it_rises_in_equal_parts_to_the_peak_from_a_first_step_above_zero(name: ScheduleName) -> None:
    factor = schedule(name, 0.25, 40)
    risen = [factor(step) for step in range(11)]
    assert risen == pytest.approx([(step + 1) / 11 for step in range(11)])
    assert factor(10) == 1.0


@each_name
def test_without_warm_up_the_first_step_has_the_peak(name: ScheduleName) -> None:
    assert schedule(name, 0.0, 7)(0) == 1.0


def test_constant_stays() -> None:
    factor = schedule("constant", 0.1, 30)
    assert {factor(step) for step in range(3, 30)} == {1.0}


def test_linear_falls_in_equal_parts_to_zero_just_after_the_last_step() -> None:
    factor = schedule("linear", 0.2, 25)
    assert [factor(step) for step in range(5, 26)] == pytest.approx([1 - n / 20 for n in range(21)], abs=1e-12)
    assert factor(24) > 0
    assert factor(25) == 0


def test_cosine_falls_by_half_a_cosine_to_zero_just_after_the_last_step() -> None:
    factor = schedule("cosine", 0.2, 25)
    for n in range(21):
        assert factor(5 + n) == pytest.approx(math.cos(math.pi * n / 40) ** 2, abs=1e-12)
    assert factor(15) == pytest.approx(0.5)
    assert factor(24) > 0
    assert factor(25) == pytest.approx(0, abs=1e-12)


@each_name
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
@pytest.mark.parametrize("ratio", [0.0, 0.03, 0.5, 0.999])
def test_every_step_has_a_rate_above_zero_and_not_above_the_peak(name: ScheduleName, steps: int, ratio: float) -> None:
    factors = [schedule(name, ratio, steps)(step) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)


@pytest.mark.parametrize(("ratio", "steps", "warmup"), [(0.07, 100, 7), (0.1, 30, 3), (0.14, 50, 7), (0.29, 100, 29)])
def test_a_warm_up_of_whole_steps_is_that_many_steps(ratio: float, steps: int, warmup: int) -> None:
    """0.07 * 100 is 7.000000000000001 in floating point, and is 7 steps all the same."""
    factor = schedule("constant", ratio, steps)
    assert [factor(step) for step in range(steps)].index(1.0) == warmup


@pytest.mark.parametrize(("name", "kind"), [("adamw", "AdamW"), ("sgd", "SGD"), ("adafactor", "Adafactor")])
def test_a_recipe_s_optimizer_is_built_over_what_it_is_given(name: Any, kind: str) -> None:
    import torch

    weight = torch.nn.Parameter(torch.ones(2, 3))
    made = build_optimizer(TrainSettings(optimizer=name, learning_rate=0.5, weight_decay=0.25), iter([(1.0, weight)]))
    assert type(made).__name__ == kind
    [group] = made.param_groups
    assert group["params"] == [weight]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)


def test_adamw_s_first_step_is_the_closed_formula() -> None:
    """Bias correction makes the first update lr * sign(gradient), after a decay of lr * weight_decay."""
    import torch

    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    made = build_optimizer(TrainSettings(optimizer="adamw", learning_rate=0.125, weight_decay=0.5), [(1.0, weight)])
    weight.grad = torch.tensor([0.3, -4.0, 1e-2])
    made.step()
    wanted = torch.tensor([1.0, -2.0, 0.5]) * (1 - 0.0625) - 0.125 * torch.tensor([1.0, -1.0, 1.0])
    torch.testing.assert_close(weight.detach(), wanted, rtol=0, atol=1e-6)


def test_each_tensor_s_rate_is_the_schedule_s_times_its_own_factor() -> None:
    import torch

    slow, fast = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    made = build_optimizer(TrainSettings(optimizer="sgd", learning_rate=0.5), [(1.0, slow), (16.0, fast)])
    set_rate(made, 0.125)
    slow.grad = fast.grad = torch.ones(2)
    made.step()
    assert slow.tolist() == [0.875, 0.875]
    assert fast.tolist() == [-1.0, -1.0]
