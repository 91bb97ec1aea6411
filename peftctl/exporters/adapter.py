"""The adapter as a folder that plain peft loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftctl.errors import UsageError
from peftctl.exporters import as_trained
from peftctl.exporters.contract import Job
from peftctl.run import Run


@dataclass(frozen=True)
class Adapter:
    name: str = "adapter"
    summary: str = "the adapter as plain peft loads it, with tokenizer and chat template"
    types: tuple[str, ...] = ()
    opens_base: bool = False
    checked_with: Mapping[str, str] = field(default_factory=dict)
    written_with: Mapping[str, str] = field(default_factory=dict)

    def check(self, run: Run, type_: str) -> None:
        if run.manifest["artifact"] != "adapter":
            raise UsageError(
                f"{run.path}: the run trained the model itself, so there is no adapter to export",
                "--to merged is the model, as transformers loads it",
            )

    def write(self, job: Job) -> None:
        as_trained.copy(job)

    def verify(self, job: Job, written: None) -> Mapping[str, Any]:
        return as_trained.unchanged(job)


EXPORTER = Adapter()
