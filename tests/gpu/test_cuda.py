"""The main job on a GPU. Skipped where there is none; nothing in the docs claims a GPU until these ran on one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import jobs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_a_run_on_the_gpu_learns_and_reloads(tmp_path: Path, tiny_model: Path) -> None:
    run, events = jobs.train(tmp_path, tiny_model, model={"dtype": "auto"}, train={"epochs": 6})
    model = next(event for event in events if event["event"] == "model")
    assert model["device"].startswith("cuda")
    seen = jobs.losses(events)
    assert seen[-1] < 0.7 * seen[0]
    reload = jobs.manifest(run)["verified"]["reload"]
    assert reload["max_difference"] <= reload["tolerance"]


def test_the_gpu_follows_the_cpus_trajectory_in_float32(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.state import PartialState

    _, on_gpu = jobs.train(tmp_path, tiny_model, "gpu")
    PartialState._reset_state()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    _, on_cpu = jobs.train(tmp_path, tiny_model, "cpu")
    PartialState._reset_state()
    gpu, cpu = (torch.tensor(jobs.losses(each), dtype=torch.float64) for each in (on_gpu, on_cpu))
    assert (gpu - cpu).abs().max() <= len(gpu) * 256 * torch.finfo(torch.float32).eps * gpu.max()
