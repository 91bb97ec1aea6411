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


def test_every_fast_path_equals_the_plain_path_on_the_gpu(tmp_path: Path, tiny_model: Path) -> None:
    off = dict.fromkeys(("packed", "loss", "lora", "norm"), False)
    for checkpointing in (False, True):
        train = {"gradient_checkpointing": checkpointing}
        _, fast = jobs.train(tmp_path, tiny_model, f"fast{checkpointing}", train=train)
        _, plain = jobs.train(tmp_path, tiny_model, f"plain{checkpointing}", train={**train, "fast": off})
        bound = len(jobs.losses(plain)) * 256 * torch.finfo(torch.float32).eps * max(jobs.losses(plain))
        assert jobs.losses(fast) == pytest.approx(jobs.losses(plain), abs=bound)


@pytest.mark.parametrize("optimizer", ["paged_adamw", "paged_adamw_8bit", "adamw_8bit"])
def test_bitsandbytes_optimizers_train_on_the_gpu(tmp_path: Path, tiny_model: Path, optimizer: str) -> None:
    _, events = jobs.train(tmp_path, tiny_model, train={"epochs": 6, "optimizer": optimizer})
    seen = jobs.losses(events)
    assert seen[-1] < 0.8 * seen[0]


def test_offloaded_activations_change_nothing(tmp_path: Path, tiny_model: Path) -> None:
    kept = {"gradient_checkpointing": True}
    _, plain = jobs.train(tmp_path, tiny_model, "plain", train=kept)
    _, offloaded = jobs.train(tmp_path, tiny_model, "offloaded", train={**kept, "offload_activations": True})
    assert jobs.losses(plain) == jobs.losses(offloaded)


def test_out_of_memory_halves_the_micro_batch(tmp_path: Path, tiny_model: Path) -> None:
    """Memory is taken away until a pass of all rows cannot fit, and one of some rows can."""
    free, _ = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 0.3e9 / free))
    try:
        rows = {"batch_size": 24, "micro_batch_tokens": 1_000_000, "fast": {"packed": False, "loss": False}}
        run, events = jobs.train(tmp_path, tiny_model, train=rows)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert jobs.manifest(run)["steps"] == len(jobs.losses(events))


def test_the_loop_never_waits_for_the_device_between_two_log_entries(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftctl.train import loop

    right, last = loop._backward, []

    def watched(session, work):  # type: ignore[no-untyped-def]
        torch.cuda.set_sync_debug_mode("error" if session.step > 10 else "default")
        return right(session, work)

    monkeypatch.setattr(loop, "_backward", watched)
    emit = loop._Window.emit

    def emitting(self, rate):  # type: ignore[no-untyped-def]
        torch.cuda.set_sync_debug_mode("default")
        last.append(rate)
        emit(self, rate)

    monkeypatch.setattr(loop._Window, "emit", emitting)
    try:
        jobs.train(tmp_path, tiny_model, train={"epochs": None, "max_steps": 20, "log_every": 20})
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(last) == 1
