"""The whole model of a run as a GGUF file: what the forms that hold one share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError
from peftctl.exporters import whole
from peftctl.exporters.contract import Job
from peftctl.generate import stop_ids
from peftctl.gguf import compare, convert, families, runtime
from peftctl.gguf.numbers import TYPES
from peftctl.merge import compare as merged
from peftctl.model import load, locate
from peftctl.model.locate import Base
from peftctl.run import Run, at_base
from peftctl.tasks import task_of

WHOLE = "whole.gguf"  # in float32, what llama.cpp's quantiser is given


@dataclass(frozen=True)
class Written:
    """The model that a GGUF file was made of, and ``facts`` of how that came to be. ``whole``: the file in float32 that
    the one asked for was quantised from, None where it was not."""

    source: convert.Source
    whole: Path | None
    facts: Mapping[str, Any]


def check_task(run: Run) -> None:
    """Raises UsageError where the run's model does not write on from a text: llama.cpp is asked nothing else here."""
    if not task_of(run.recipe.task).chats:
        raise UsageError(
            f"{run.path}: GGUF files are made of models that write on from a text; this run's task is "
            f"{run.recipe.task.name}",
            "--to onnx takes every task",
        )


def check(run: Run) -> None:
    """Raises UsageError where no GGUF file can be made of what the run left."""
    check_task(run)
    whole.check(run)


def base_of(job: Job) -> Base:
    """The run's base model, wherever it is; of a run that trained the model itself, that model."""
    if job.run.manifest["artifact"] == "model":
        return Base(str(job.run.artifact), job.run.artifact, "folder")
    return locate.locate(at_base(job.run, job.base), job.note)


def source_of(folder: Path, job: Job) -> convert.Source:
    """The model in ``folder`` as it is to be converted. Raises UsageError where it cannot be."""
    from transformers import GenerationConfig

    base = Base(str(folder), folder, "folder")
    config = load.load_config(base, job.run.recipe.model)
    tokenizer = load.load_tokenizer(base, job.run.recipe.model)
    convert.check(config, tokenizer)
    said = folder / "generation_config.json"
    generation = (
        GenerationConfig.from_pretrained(folder) if said.exists() else GenerationConfig.from_model_config(config)
    )
    return convert.Source(folder, config, tokenizer, tuple(stop_ids(generation, tokenizer)), _about(job.run))


def write(job: Job, path: Path) -> Written:
    """Write the model to ``path``."""
    base, model = base_of(job), job.run.recipe.model
    # What cannot be converted is said before weights are merged; the adapter's folder has the tokenizer of training.
    convert.check(load.load_config(base, model), load.load_tokenizer(Base("", job.run.artifact, "folder"), model))
    made = whole.make(job, TYPES[job.type].merged)
    source = source_of(made.folder, job)
    whole_file = job.scratch / WHOLE if TYPES[job.type].quantised else None
    job.note(f"writing {path.name}, {job.type}")
    convert.convert(source, whole_file or path, "f32" if whole_file else job.type, job.note)
    if whole_file:
        runtime.quantise(whole_file, path, job.type)
    return Written(source, whole_file, made.facts)


def verify(job: Job, written: Written, path: Path) -> dict[str, Any]:
    """The file at ``path`` beside the model that it was made of, in llama.cpp; what it was quantised from is judged
    first."""
    source = written.source
    job.note("loading it in llama.cpp")
    form = convert.check(source.config, source.tokenizer).form
    if form:
        job.note(f"the tokenizer brings texts to {form} first, and llama.cpp does not: give it texts in {form}")
    asked = compare.asked(source.tokenizer, source.ends, form)
    fits = merged.fits(source.folder)

    @cache
    def reference() -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32, use_safetensors=True)
        return compare.said(model.eval(), asked)

    def checked(file: Path, type_: str) -> dict[str, Any]:
        allowed = compare.tolerance(type_, families.family(source.config), source.config.num_hidden_layers)
        with_ = compare.File(file, type_, allowed)
        return compare.check(with_, source.tokenizer, asked, reference if fits else None, job.scratch)

    found = {"llama_cpp": checked(path, job.type)}
    if written.whole:
        found["before_quantising"] = checked(written.whole, "f32")
    if not fits:
        reason = "the whole model is more than half of the memory that is free: logits were not compared"
        return {"verified": "no", "reason": reason, **found, **written.facts}
    return {"verified": "yes", **found, **written.facts}


def _about(run: Run) -> dict[str, str]:
    base = Path(str(run.manifest["base"]["name"])).name
    return {"type": "model", "name": f"{base}, {run.recipe.method.name}"}
