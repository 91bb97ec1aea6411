"""The adapter as a folder that plain peft loads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.atomic import inventory
from peftctl.errors import UsageError, VerificationError
from peftctl.run import Run


@dataclass(frozen=True)
class Adapter:
    name: str = "adapter"
    summary: str = "the adapter as plain peft loads it, with tokenizer and chat template"

    def check(self, run: Run) -> None:
        if run.manifest["artifact"] != "adapter":
            raise UsageError(
                f"{run.path}: the run trained the model itself, so there is no adapter to export",
                f"it is {run.artifact}",
            )

    def write(self, run: Run, folder: Path, note: Callable[[str], None]) -> None:
        shutil.copytree(run.artifact, folder, dirs_exist_ok=True)

    def verify(self, run: Run, folder: Path, written: None) -> Mapping[str, Any]:
        """Every file is, byte for byte, the one whose reload gave the trained model's logits."""
        recorded = {
            name.removeprefix("adapter/"): entry
            for name, entry in run.manifest["files"].items()
            if name.startswith("adapter/")
        }
        if inventory(folder) != recorded:
            raise VerificationError(f"{run.artifact} is not what the run's manifest says it is; nothing was published")
        return {"verified": "yes", "reload": run.manifest["verified"]["reload"]}


EXPORTER = Adapter()
