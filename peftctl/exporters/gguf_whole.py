"""The whole model of a run as a GGUF file: what the forms that hold one share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from peftctl.atomic import write_text
from peftctl.card import title, training
from peftctl.errors import UsageError
from peftctl.exporters import whole
from peftctl.exporters.contract import Job
from peftctl.generate import stop_ids
from peftctl.gguf import compare, convert, families, runtime
from peftctl.gguf.numbers import TYPES, kinds
from peftctl.merge import compare as merged
from peftctl.merge.merge import check_room
from peftctl.model import identity, load, locate
from peftctl.model.locate import Base
from peftctl.run import Run, at_base
from peftctl.tasks import task_of

WHOLE = "whole.gguf"  # in float32, what llama.cpp's quantiser is given


@dataclass(frozen=True)
class Written:
    """The model that a GGUF file was made of, and ``facts`` of how that came to be. ``whole``: the file in float32 that
    the one asked for was quantised from, None where it was not; then ``kinds`` counts its matrices by type."""

    source: convert.Source
    whole: Path | None
    facts: Mapping[str, Any]
    kinds: Mapping[str, int]


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
    """The run's base model, wherever it is; of a run that trained the model itself, that model. Raises UsageError where
    it is another one than was trained on."""
    if job.run.manifest["artifact"] == "model":
        return Base(str(job.run.artifact), job.run.artifact, "folder")
    found = locate.locate(at_base(job.run, job.base), job.note)
    identity.check(found, job.run.manifest["base"])
    return found


def source_of(folder: Path, job: Job, words: Path | None = None) -> convert.Source:
    """The model in ``folder`` as it is to be converted, with the tokenizer in ``words`` if not there. Raises UsageError
    where it cannot be."""
    from transformers import GenerationConfig

    base = Base(str(folder), folder, "folder")
    config = load.load_config(base, job.run.recipe.model)
    tokenizer = load.load_tokenizer(Base(str(words), words, "folder") if words else base, job.run.recipe.model)
    convert.check(config, tokenizer)
    said = folder / "generation_config.json"
    generation = (
        GenerationConfig.from_pretrained(folder) if said.exists() else GenerationConfig.from_model_config(config)
    )
    ends = tuple(stop_ids(generation, tokenizer))
    sampling = generation.to_diff_dict() if generation.do_sample else {}
    return convert.Source(folder, config, tokenizer, ends, _about(job.run), sampling)


def write(job: Job, path: Path, fits: Callable[[convert.Source], Any] = lambda _: None) -> Written:
    """Write the model to ``path``. ``fits`` raises UsageError where it will not do, before weights are merged."""
    # The adapter's folder has the tokenizer of training.
    fits(source_of(base_of(job).folder, job, job.run.artifact))
    _check_room(job)
    made = whole.make(job, TYPES[job.type].merged)
    source = source_of(made.folder, job)
    whole_file = job.scratch / WHOLE if TYPES[job.type].quantised else None
    job.note(f"writing {path.name}, {job.type}")
    convert.convert(source, whole_file or path, "f32" if whole_file else job.type, job.note)
    if not whole_file:
        return Written(source, None, made.facts, {})
    runtime.quantise(whole_file, path, job.type)
    found = kinds(path)
    job.note(f"llama.cpp made of its matrices {_counted(found)}")
    return Written(source, whole_file, made.facts, found)


def _counted(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {type_}" for type_, count in found.items())


def _check_room(job: Job) -> None:
    """Raises MachineError where the disk has no room for what is written on the way and what is left."""
    numbers, whole_bytes = TYPES[job.type], 4 * merged.numbers(base_of(job).folder)
    each = whole_bytes if numbers.merged == "float32" else whole_bytes // 2
    on_the_way = each + (whole_bytes if numbers.quantised else 0)
    check_room(job.folder, on_the_way + each, f"exporting to {job.type}")


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

    found: dict[str, Any] = {"llama_cpp": checked(path, job.type)}
    if fits:
        _tell(job, found["llama_cpp"])
    if written.kinds:
        found["matrices"] = dict(written.kinds)
    if written.whole:
        found["before_quantising"] = checked(written.whole, "f32")
    if not fits:
        reason = "the whole model is more than half of the memory that is free: logits were not compared"
        return {"verified": "no", "reason": reason, **found, **written.facts}
    return {"verified": "yes", **found, **written.facts}


def _tell(job: Job, found: Mapping[str, Any]) -> None:
    """How far the file is from the run, which nobody should have to look up."""
    job.note(
        f"beside transformers in float32: KL {found['kl']:.2g}, the same likeliest token at {found['top1']:.1%} of "
        f"{found['positions']} positions"
    )


def card(job: Job, words: str, found: Mapping[str, int] | None = None) -> None:
    """README.md: ``words`` of its form, of what types a quantised file's matrices are, and how it was trained."""
    types = f"\nThe types of its matrices, as llama.cpp's quantiser made them: {_counted(found)}.\n" if found else ""
    write_text(job.folder / "README.md", f"{words}{types}\n{training(job.run)}")


def _about(run: Run) -> dict[str, str]:
    return {"type": "model", "name": title(run)}
