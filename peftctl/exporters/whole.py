"""The model that a run left as one folder that transformers loads: what other forms are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError
from peftctl.exporters.contract import Job
from peftctl.merge import merge
from peftctl.merge.source import check_merges, open_source
from peftctl.run import Run


@dataclass(frozen=True)
class Whole:
    """``folder`` with the whole model, and ``facts`` of how it came to be, for a manifest."""

    folder: Path
    facts: Mapping[str, Any]


def check(run: Run) -> None:
    """Raises UsageError where the run left no whole model, and none can be made of what it left."""
    if run.manifest["artifact"] != "model":
        check_merges(run)


def instead(run: Run, how: str) -> str:
    """What to do with a run whose adapter a program does not take: ``how`` its whole model is had, where it has one."""
    try:
        check(run)
    except UsageError:
        return "peftctl export RUN OUT --to adapter, for plain peft"
    return how


def make(job: Job, dtype: str | None = None) -> Whole:
    """What the run trained, where that is the model itself, or base and adapter merged into ``job.scratch``, with its
    weights in ``dtype``, None for the base's own."""
    if job.run.manifest["artifact"] == "model":
        return Whole(job.run.artifact, {})
    source = open_source(job.run.path, job.base, job.note, force=None)
    folder = job.scratch / "merged"
    folder.mkdir()
    facts = merge.write(source, folder, merge.Options(dtype=dtype), job.note)
    return Whole(folder, {"merged": {"how": facts["how"], **facts["checked"]}})
