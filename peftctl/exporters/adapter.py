"""The adapter as a folder that plain peft loads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftctl.atomic import inventory
from peftctl.errors import UsageError, VerificationError
from peftctl.exporters.contract import Job
from peftctl.run import Run


@dataclass(frozen=True)
class Adapter:
    name: str = "adapter"
    summary: str = "the adapter as plain peft loads it, with tokenizer and chat template"
    types: tuple[str, ...] = ()
    opens_base: bool = False
    checked_with: Mapping[str, str] = field(default_factory=dict)

    def check(self, run: Run, type_: str) -> None:
        if run.manifest["artifact"] != "adapter":
            raise UsageError(
                f"{run.path}: the run trained the model itself, so there is no adapter to export",
                f"it is {run.artifact}",
            )

    def write(self, job: Job) -> None:
        shutil.copytree(job.run.artifact, job.folder, dirs_exist_ok=True)

    def verify(self, job: Job, written: None) -> Mapping[str, Any]:
        """Every file is, byte for byte, the one whose reload gave the trained model's logits."""
        recorded = {
            name.removeprefix("adapter/"): entry
            for name, entry in job.run.manifest["files"].items()
            if name.startswith("adapter/")
        }
        if inventory(job.folder) != recorded:
            raise VerificationError(
                f"{job.run.artifact} is not what the run's manifest says it is; nothing was published"
            )
        return {"verified": "yes", "reload": job.run.manifest["verified"]["reload"]}


EXPORTER = Adapter()
