"""The divergence of two models' logits."""

from __future__ import annotations

import math

import pytest
import torch

from peftctl.model.divergence import divergence


def test_it_is_that_of_the_formula_from_the_first_to_the_second() -> None:
    one = torch.tensor([[0.5, 0.5], [0.5, 0.5]]).log()
    two = torch.tensor([[0.75, 0.25], [0.5, 0.5]]).log() + 3.0  # which logits may be shifted by
    wanted = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert divergence(one, two) == pytest.approx(wanted / 2, rel=1e-6)
    assert divergence(two, one) != pytest.approx(wanted / 2, rel=1e-2)
    assert divergence(one, one) == 0.0


def test_what_float32_would_lose_is_there() -> None:
    one = torch.randn(8, 40_000, generator=torch.Generator().manual_seed(0))
    two = one + 1e-5 * torch.randn(one.shape, generator=torch.Generator().manual_seed(1))
    share = one.double().softmax(-1)
    change = two.double() - one.double()
    mean = (share * change).sum(-1, keepdim=True)
    wanted = float((share * (change - mean) ** 2).sum(-1).mean() / 2)  # the first term of its series
    assert wanted < 1e-10
    assert divergence(one, two) == pytest.approx(wanted, rel=1e-3)
