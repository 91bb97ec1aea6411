"""Graphs that onnxruntime and other ONNX runtimes run, without Python or torch."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftctl.atomic import write_text
from peftctl.card import title, training
from peftctl.errors import MachineError, UsageError
from peftctl.exporters import whole
from peftctl.exporters.contract import Job
from peftctl.merge import memory
from peftctl.merge.merge import check_room
from peftctl.model import load, locate, prequantized
from peftctl.model.locate import Base
from peftctl.onnx import check, files, usage
from peftctl.onnx.cases import traced
from peftctl.onnx.contract import Form
from peftctl.onnx.forms import form, unfit
from peftctl.onnx.write import write
from peftctl.run import Run, at_base
from peftctl.sizes import size
from peftctl.tasks import task_of

NEEDED = 2  # times the weights, in onnxruntime; they are written with one


@dataclass(frozen=True)
class Written:
    """The ``folder`` of the whole model that the graphs ``names`` of a ``form`` were made of, and ``facts`` of how it
    came to be."""

    form: Form
    folder: Path
    names: tuple[str, ...]
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Onnx:
    name: str = "onnx"
    summary: str = "the model with the adapter in its weights, as ONNX graphs in float32"
    types: tuple[str, ...] = ()
    opens_base: bool = True
    checked_with: Mapping[str, str] = field(default_factory=lambda: {"onnxruntime": "onnx"})
    written_with: Mapping[str, str] = field(default_factory=lambda: dict.fromkeys(("onnx", "onnxscript"), "onnx"))

    def check(self, run: Run, type_: str) -> None:
        whole.check(run)

    def write(self, job: Job) -> Written:
        task, of = task_of(job.run.recipe.task), _check(job)
        made = whole.make(job, "float32")
        model, tokenizer = _opened(job, made.folder)
        model.set_attn_implementation("eager")  # of which every model has one, and padding leaves no NaN in it
        graphs = of.graphs(model, task, traced(model, tokenizer))
        for graph in graphs:
            job.note(f"writing {graph.name}.onnx")
            write(graph, model, job.folder)
        files.beside(made.folder, job.folder)
        labels = job.run.recipe.task.labels or ()
        words = files.words(title(job.run), graphs, labels, usage.code(graphs, model, tokenizer))
        write_text(job.folder / "README.md", f"{words}\n{training(job.run)}")
        names = tuple(graph.name for graph in graphs)
        del model
        gc.collect()
        return Written(of, made.folder, names, made.facts)

    def verify(self, job: Job, written: Written) -> Mapping[str, Any]:
        """What onnxruntime computes is, to within rounding, what torch does, and writes the same."""
        task = task_of(job.run.recipe.task)
        job.note("comparing what onnxruntime computes with torch")
        found = check.verify(written.form, task, lambda: _opened(job, written.folder), job.folder, written.names)
        return {**written.facts, **found}


def _check(job: Job) -> Form:
    """What the run's model becomes, as its config says. Raises UsageError where no graph does what it does,
    MachineError where memory or disk do not suffice for its weights in float32."""
    run = job.run
    trained = run.manifest["artifact"] == "model"
    base = _base(run.artifact) if trained else locate.locate(at_base(run, job.base), job.note)
    config, task = load.load_config(base, run.recipe.model), task_of(run.recipe.task)
    if why := unfit(task, config):
        where = run.artifact if trained else "what peftctl export RUN OUT --to merged makes"
        raise UsageError(f"{run.path}: cannot be exported to ONNX: {why}", f"transformers runs {where}")
    of, each = form(task, config), prequantized.weight_bytes(config, base.folder, "float32")
    if NEEDED * each > (free := memory.available()):
        raise MachineError(
            f"{run.path}: to make graphs of it and to run them takes {size(NEEDED * each)} of memory, and {size(free)} "
            "are free"
        )
    check_room(job.folder, each * (of.copies + (not trained)), "exporting to ONNX")
    return of


def _base(folder: Path) -> Base:
    return Base(str(folder), folder, "folder")


def _opened(job: Job, folder: Path) -> tuple[Any, Any]:
    """The model in ``folder`` in float32, and its tokenizer."""
    settings = job.run.recipe.model.model_copy(update={"quantization": None})
    model = load.load_model(_base(folder), settings, task_of(job.run.recipe.task), "float32")
    return model, load.load_tokenizer(_base(folder), settings)


EXPORTER = Onnx()
