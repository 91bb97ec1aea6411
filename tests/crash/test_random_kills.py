"""A real model's training killed at random times goes on to the same bits. ``scripts/proofs kills`` has more of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import real


@pytest.mark.slow
@pytest.mark.whole
def test_a_real_models_training_killed_at_random_times_ends_with_the_same_bits(tmp_path: Path) -> None:
    expected, seconds = real.whole(tmp_path / "whole", steps=4)
    found = real.trial(tmp_path / "killed", 4, kills=1, seconds=seconds, seed=1, expected=expected)
    assert found.kills
    assert found.same
