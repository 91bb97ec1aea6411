"""The base model with the adapter merged into its weights, as ``peftctl merge`` makes it with nothing else said; of a
run that trained the model itself, that model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftctl.exporters import as_trained, whole
from peftctl.exporters.contract import Job
from peftctl.merge import files, merge
from peftctl.merge.source import open_source
from peftctl.run import Run


@dataclass(frozen=True)
class Merged:
    name: str = "merged"
    summary: str = "the model with the adapter in its weights, as transformers loads it by itself"

    types: tuple[str, ...] = ()
    opens_base: bool = True
    checked_with: Mapping[str, str] = field(default_factory=dict)
    written_with: Mapping[str, str] = field(default_factory=dict)

    def check(self, run: Run, type_: str) -> None:
        whole.check(run)

    def write(self, job: Job) -> dict[str, Any]:
        if job.run.manifest["artifact"] == "model":
            as_trained.copy(job)
            return {}
        source = open_source(job.run.path, job.base, job.note, force=None)
        facts = merge.write(source, job.folder, merge.Options(), job.note)
        files.card(source, facts["how"] | facts["checked"], job.folder)
        return facts

    def verify(self, job: Job, written: dict[str, Any]) -> Mapping[str, Any]:
        """What merging compared while it had the weights at hand, or what training did."""
        if not written:
            return as_trained.unchanged(job)
        return {"how": written["how"], **written["checked"]}


EXPORTER = Merged()
