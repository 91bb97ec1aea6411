"""What vLLM serves: a whole model, or the adapter beside its base, each with the command that serves it.

vLLM is no part of an installation of peftctl. Its rules are in ``vllm_rules``; where it is installed, what was written
is loaded in it and compared.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from peftctl.atomic import write_text
from peftctl.card import training
from peftctl.errors import UsageError
from peftctl.exporters import as_trained, whole
from peftctl.exporters import vllm_rules as rules
from peftctl.exporters import vllm_serve as serve
from peftctl.exporters.contract import Job
from peftctl.exporters.vllm_serve import Served
from peftctl.model import identity, load, locate
from peftctl.model.attach import HEADS
from peftctl.run import Run, at_base
from peftctl.tasks import task_of

MERGED, ADAPTER = "merged", "adapter"
MERGE = "--type merged"


@dataclass(frozen=True)
class Vllm:
    name: str = "vllm"
    summary: str = "what vLLM serves: the merged model, or the adapter beside its base, with the command for it"
    types: tuple[str, ...] = (MERGED, ADAPTER)
    opens_base: bool = True
    checked_with: Mapping[str, str] = field(default_factory=dict)  # vLLM is used where it is, and asked for nowhere
    written_with: Mapping[str, str] = field(default_factory=dict)

    def check(self, run: Run, type_: str) -> None:
        if type_ == MERGED:
            whole.check(run)
            if (task := run.recipe.task.name) not in rules.MERGED_TASKS:
                _unserved(run, rules.unserved("", task))
            return
        if run.manifest["artifact"] != "adapter":
            raise UsageError(f"{run.path}: the run trained the model itself, so there is no adapter", "--type merged")
        if (task := run.recipe.task.name) not in rules.ADAPTER_TASKS:
            _refuse(
                run,
                [f"an adapter for {task}, whose head the base lacks there; allowed: causal_lm"],
                whole.instead(run, MERGE),
            )
        if (run.artifact / HEADS).exists():
            _refuse(run, [f"a head beside PEFT's files ({HEADS})"])
        _refuse(run, list(rules.refused(serve.adapter(run.artifact))), whole.instead(run, MERGE))

    def write(self, job: Job) -> Served:
        recipe, task = at_base(job.run, job.base), task_of(job.run.recipe.task)
        base = locate.locate(recipe, job.note, weights=False)
        config = load.load_config(base, recipe.model)
        found = serve.architecture(base.folder, task, config)
        _unserved(job.run, rules.unserved(found, task.name))
        if job.type == MERGED:
            made = whole.make(job)
            _move(job, made)
            served = serve.model(job, found, made.facts)
        else:
            adapter = serve.adapter(job.run.artifact)
            vocabulary = config.get_text_config().vocab_size
            _refuse(job.run, list(rules.refused_on(adapter, found, vocabulary)), whole.instead(job.run, MERGE))
            _check_base(job.run, base)
            shutil.copytree(job.run.artifact, job.folder, dirs_exist_ok=True)
            served = serve.adapter_beside(job, found, base, adapter)
        write_text(job.folder / as_trained.CARD, f"{served.card}\n{training(job.run)}")
        return served

    def verify(self, job: Job, written: Served) -> Mapping[str, Any]:
        facts = {"folder": _folder(job, written), **written.facts}
        if find_spec("vllm") is None:
            return {"verified": "no", "reason": "vLLM is not installed here", **facts}
        from peftctl.exporters import vllm_compare

        return {**vllm_compare.compare(job, written), **facts}


def _check_base(run: Run, base: locate.Base) -> None:
    """Raises UsageError where the base's weights are at hand and are not those that the run was trained on."""
    files = identity.weight_files(base.folder)
    if files and all(file.exists() for file in files):
        identity.check(base, dict(run.manifest["base"]))


def _unserved(run: Run, why: str) -> None:
    if why:
        raise UsageError(f"{run.path}: vLLM {rules.VERSION} does not serve it: {why}")


def _refuse(run: Run, found: Sequence[str], instead: str = "") -> None:
    if found:
        raise UsageError(f"{run.path}: vLLM {rules.VERSION} refuses {'; '.join(found)}", instead)


def _move(job: Job, made: whole.Whole) -> None:
    """The whole model into the folder; a run's own is copied."""
    if made.folder.is_relative_to(job.scratch):
        for path in made.folder.iterdir():
            path.rename(job.folder / path.name)
    else:
        shutil.copytree(made.folder, job.folder, dirs_exist_ok=True)


def _folder(job: Job, written: Served) -> str:
    """How the folder is known to be what the run trained, without vLLM."""
    if merged := written.facts.get("merged"):
        return f"yes, loaded by transformers: {merged['compared']} compared with base and adapter"
    as_trained.unchanged(job)
    return "yes, loaded by transformers: every byte is as it was when its reload gave the trained model's logits"


EXPORTER = Vllm()
