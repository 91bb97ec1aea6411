"""Processes and devices, as Accelerate sees them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftctl.errors import MachineError
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
