"""The base model with the adapter merged into its weights, as ``peftctl merge`` makes it with nothing else said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.merge import files, merge
from peftctl.merge.source import Source, check_merges, open_source
from peftctl.run import Run


@dataclass(frozen=True)
class Written:
    """``facts``: what merging says of what it did and how that was checked."""

    source: Source
    facts: dict[str, Any]


@dataclass(frozen=True)
class Merged:
    name: str = "merged"
    summary: str = "the model with the adapter in its weights, as transformers loads it by itself"

    def check(self, run: Run) -> None:
        check_merges(run)

    def write(self, run: Run, folder: Path, note: Callable[[str], None]) -> Written:
        source = open_source(run.path, None, note)
        return Written(source, merge.write(source, folder, merge.Options(), note))

    def verify(self, run: Run, folder: Path, written: Written) -> Mapping[str, Any]:
        """What merging compared while it had the weights at hand."""
        facts = written.facts
        files.card(written.source, facts["how"] | facts["checked"], folder)
        return {"how": facts["how"], **facts["checked"]}


EXPORTER = Merged()
