"""Processes and devices, as Accelerate sees them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftctl.errors import MachineError, UsageError
from peftctl.recipe.schema import Recipe
from peftctl.train.resume import Beginning
from peftctl.train.trackers import FOLDER


def accelerator(trackers: Sequence[str], run: Path) -> Any:
    """Accelerate's object for this process. Raises MachineError where it sees fewer processes than were launched.

    On a machine without accelerators it has to be told so, or it takes each process for a run of its own.
    """
    import torch
    from accelerate import Accelerator

    launched = int(os.environ.get("WORLD_SIZE", "1"))
    made = Accelerator(
        cpu=launched > 1 and not torch.accelerator.is_available(),
        log_with=list(trackers) or None,
        project_dir=run / FOLDER,
    )
    if made.num_processes != launched:
        raise MachineError(f"{launched} processes were launched, and Accelerate sees {made.num_processes}")
    return made


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Within this context torch refuses to compute what would have other bits each time, if that is ``wanted``."""
    import torch

    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    before, benchmark = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
        torch.backends.cudnn.benchmark = benchmark


def check(recipe: Recipe, accelerator: Any) -> None:
    """Raises UsageError for what a recipe asks that several processes cannot give."""
    if recipe.train.log_rows and accelerator.num_processes > 1:
        raise UsageError("train.log_rows: not with several processes, each of which sees its own rows alone")


def tell(accelerator: Any, beginning: Beginning | None) -> Beginning:
    """Where the first process lets the run begin, to all of them."""
    from accelerate.utils import broadcast_object_list

    if accelerator.num_processes == 1:
        assert beginning is not None
        return beginning
    told: list[Any] = [beginning]
    broadcast_object_list(told)
    heard: Beginning = told[0]
    return heard
