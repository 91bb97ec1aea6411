"""Adding a format, a method or an exporter is one file and one line: nothing in the core has to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import Field

from peftctl import exporters, formats, methods
from peftctl.example import Example, Segment, Segments
from peftctl.exporters.contract import Job
from peftctl.exporters.export import Asked, export
from peftctl.formats.contract import text_of
from peftctl.methods import Anatomy, DataFacts, MethodSettings
from peftctl.methods.contract import TargetedSettings
from peftctl.methods.peft_method import PeftMethod
from peftctl.run import Run, open_run
from tests import jobs, tiny


@dataclass(frozen=True)
class Shout:
    """A toy format: the answer is the question in capitals."""

    name: str = "shout"
    columns: str = "say: text"
    reads: tuple[str, ...] = ("say",)
    makes: tuple[type[Example], ...] = (Segments,)

    def matches(self, columns: frozenset[str]) -> bool:
        return "say" in columns

    def example(self, row: Mapping[str, Any]) -> Segments:
        said = text_of(row, "say")
        return Segments((Segment(said + " "), Segment(said.upper(), 1.0)))


class LastLayerSettings(TargetedSettings):
    name: Literal["last_layer"] = "last_layer"
    strength: float = Field(1.0, gt=0, description="Scale.")


@dataclass(frozen=True)
class LastLayer(PeftMethod):
    """A toy method: (IA)³ vectors, by PEFT's own config, on the targets."""

    name: str = "last_layer"
    peft_type: str = "IA3"
    settings: type[MethodSettings] = LastLayerSettings
    learning_rate: float = 1e-2

    def build(self, model: Any, settings: Any, targets: Sequence[str], peft_type: str, facts: DataFacts) -> Any:
        from peft import IA3Config, get_peft_model

        return get_peft_model(
            model, IA3Config(task_type=peft_type, target_modules=list(targets), feedforward_modules=[])
        )

    def parameters(self, settings: Any, anatomy: Anatomy) -> int:
        return sum(outputs for _, outputs in anatomy.targets.values())


@dataclass(frozen=True)
class Names:
    """A toy exporter: the list of targets."""

    name: str = "names"
    summary: str = "the targets, one a line"
    types: tuple[str, ...] = ()
    opens_base: bool = False
    checked_with: Mapping[str, str] = field(default_factory=dict)
    written_with: Mapping[str, str] = field(default_factory=dict)

    def check(self, run: Run, type_: str) -> None:
        """It takes every run."""

    def write(self, job: Job) -> None:
        (job.folder / "targets.txt").write_text("\n".join(job.run.manifest["targets"]))

    def verify(self, job: Job, written: None) -> Mapping[str, Any]:
        assert (job.folder / "targets.txt").read_text().splitlines() == job.run.manifest["targets"]
        return {"verified": "yes"}


def test_a_toy_format_method_and_exporter_need_one_table_entry_each(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(formats.FORMATS, "shout", Shout())
    monkeypatch.setitem(methods.METHODS, "last_layer", LastLayer())
    monkeypatch.setitem(exporters.EXPORTERS, "names", Names())
    tiny.jsonl(tmp_path / "train.jsonl", [{"say": f"hello {n}"} for n in range(16)])

    method = {"name": "last_layer", "targets": ["k_proj", "v_proj"], "strength": 2.0}
    run, events = jobs.train(tmp_path, tiny_model, method=method)

    assert jobs.manifest(run)["method"] == {"name": "last_layer", "strength": 2.0}
    assert jobs.manifest(run)["trainable_parameters"] == 2 * 2 * 16
    assert next(event for event in events if event["event"] == "data")["kept"] == 16
    export(open_run(run), tmp_path / "out", Asked("names"))
    assert len((tmp_path / "out" / "targets.txt").read_text().splitlines()) == 4
