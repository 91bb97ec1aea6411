"""The adapter of a run as a GGUF file of its own: what the forms that hold one share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftctl.errors import UsageError, VerificationError
from peftctl.exporters import gguf_whole, whole
from peftctl.exporters.contract import Job
from peftctl.gguf import compare, convert, families, lora
from peftctl.merge import compare as merged
from peftctl.run import Run


def check(run: Run, whole_by: str = "--to gguf") -> None:
    """Raises UsageError where the run left no adapter that llama.cpp can add to a model; ``whole_by``: how its whole
    model is had."""
    gguf_whole.check_task(run)
    if run.manifest["artifact"] != "adapter":
        raise UsageError(f"{run.path}: the run trained the model itself, so there is no adapter", whole_by)
    try:
        lora.check(run.artifact)
    except UsageError as error:
        raise UsageError(error.message, whole.instead(run, whole_by)) from None


def write(job: Job, path: Path, type_: str) -> convert.Source:
    """Write the adapter to ``path``, its matrices in ``type_``; the base that it is for."""
    if (kept := job.run.recipe.model.quantization) is not None:
        job.note(
            f"training saw the base in {kept.bits} bits, and llama.cpp adds the adapter to another: it answers a "
            "little otherwise; --to gguf merges it into what training saw"
        )
    source = gguf_whole.source_of(gguf_whole.base_of(job).folder, job, job.run.artifact)
    lora.write(job.run.artifact, source.config, path, type_, {**source.about, "type": "adapter"})
    return source


def verify(job: Job, base: convert.Source, file: compare.File) -> dict[str, Any]:
    """Base and adapter in llama.cpp beside base and adapter in transformers and peft, there in float32."""
    if not merged.fits(base.folder):
        return {"verified": "no", "reason": "the base is more than half of the memory that is free"}
    asked = compare.asked(base.tokenizer, base.ends, convert.check(base.config, base.tokenizer).form)

    def reference() -> Any:
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32, use_safetensors=True)
        without, _ = compare.said(model.eval(), asked)
        said = compare.said(PeftModel.from_pretrained(model, job.run.artifact).eval(), asked)
        if bool((without == said[0]).all()):
            raise VerificationError("the adapter changes nothing, so nothing can be compared; nothing was published")
        return said

    job.note("loading base and adapter in llama.cpp")
    return {"verified": "yes", "llama_cpp": compare.check(file, base.tokenizer, asked, reference, job.scratch)}


def file(base: convert.Source, whole: Path, type_: str, adapter: Path) -> compare.File:
    """The base in ``whole``, a GGUF file of ``type_``, with the adapter in ``adapter``."""
    allowed = compare.tolerance(type_, families.family(base.config), base.config.num_hidden_layers)
    return compare.File(whole, type_, allowed, adapter)
