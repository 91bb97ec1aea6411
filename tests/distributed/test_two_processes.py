"""Two processes on CPUs train what one trains: the same rows, the same sums."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import jobs, tiny


@pytest.mark.slow
def test_two_processes_follow_the_trajectory_of_one(tmp_path: Path, tiny_model: Path) -> None:
    rows = 33  # the last step has a single row, so one process has none
    tiny.jsonl(tmp_path / "train.jsonl", tiny.chats(rows))
    _, events = jobs.train(tmp_path, tiny_model, "one", train={"batch_size": 8})
    (tmp_path / "two.yaml").write_text(jobs.recipe_text(tmp_path, tiny_model, "two", train={"batch_size": 8}))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--local_addr", "127.0.0.1"]
    launch += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "127.0.0.1:0"]
    command = [*launch, "-m", "peftctl.cli", "train", str(tmp_path / "two.yaml"), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    heard = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    one, two = (torch.tensor(jobs.losses(each), dtype=torch.float64) for each in (events, heard))
    assert len(one) == 5
    assert (one - two).abs().max() <= len(one) * 32 * torch.finfo(torch.float32).eps * one.max()
    tokens = [[event["tokens"] for event in each if event["event"] == "step"] for each in (events, heard)]
    assert tokens[0] == tokens[1]
    assert jobs.manifest(tmp_path / "two")["steps"] == 5
