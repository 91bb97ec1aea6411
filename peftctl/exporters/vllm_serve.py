"""How vLLM is told to serve a folder: the command, and the words around it. Flags as vLLM 0.33.0 has them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.card import title
from peftctl.exporters import vllm_rules as rules
from peftctl.exporters.contract import Job
from peftctl.generate import stop_ids
from peftctl.methods.peft_method import CONFIG
from peftctl.model import identity, load
from peftctl.model.auto import auto_class
from peftctl.model.locate import Base
from peftctl.tasks import Task, task_of

WEIGHTS = "adapter_model.safetensors"
TEMPLATE = "chat_template.jinja"
HERE = "path/to/this/folder"
POOLINGS = {"mean": "MEAN", "cls": "CLS", "last": "LAST"}  # the recipe's words in vLLM's


@dataclass(frozen=True)
class Served:
    """``card``: what README.md says. ``facts``: what the manifest says. ``options``: what vLLM's ``LLM`` is told."""

    card: str
    facts: Mapping[str, Any]
    options: Mapping[str, Any]


def adapter(folder: Path) -> rules.Adapter:
    """What the folder says of its adapter; no weights are read."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    file = folder / WEIGHTS
    header = identity.header(file) if file.exists() else {}  # some methods save files of their own
    shapes = {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return rules.Adapter(config, shapes)


def architecture(folder: Path, task: Task, config: Any) -> str:
    """The class that vLLM looks for: the one that the folder's config names, or with a head the task's own."""
    if not task.head and (named := json.loads((folder / "config.json").read_text("utf-8")).get("architectures")):
        return str(named[0])
    made: str = auto_class(task, config)._model_mapping[type(config)].__name__
    return made


def model(job: Job, found: str, facts: Mapping[str, Any]) -> Served:
    """The folder as a model of its own."""
    task = task_of(job.run.recipe.task)
    flags = _pooling(task)
    command = _command([HERE], flags)
    lines = [
        f"# {title(job.run)}, for vLLM",
        f"A whole model: {_base(job)} with what peftctl trained in its weights.",
        *_serving(command),
    ]
    told = {**facts, "architecture": found, "serve": command, "rules": f"vLLM {rules.VERSION}"}
    return Served(_joined(lines), told, {})


def adapter_beside(job: Job, found: str, base: Base, adapter: rules.Adapter) -> Served:
    """The folder as an adapter of the base."""
    rank = rules.max_lora_rank(adapter.rank)
    name = job.run.path.name
    flags = ["--enable-lora", "--lora-modules", f"{name}={HERE}"]
    flags += ["--max-lora-rank", str(rank)] if adapter.rank > rules.RANK else []
    flags += ["--revision", base.commit] if base.commit else []
    flags += ["--chat-template", f"{HERE}/{TEMPLATE}"] if (job.run.artifact / TEMPLATE).exists() else []
    flags += ["--trust-remote-code"] if job.run.recipe.model.trust_remote_code else []
    command = _command([base.name], flags)
    lines = [
        f"# {title(job.run)}, for vLLM",
        f"An adapter that peftctl trained, of rank {adapter.rank}, on {_base(job)}, which vLLM loads beside it.",
        *_serving(command),
        f"Requests ask for the model `{name}`; the base answers under its own name.",
        *_remarks(job, base, adapter),
    ]
    told = {"architecture": found, "serve": command, "rules": f"vLLM {rules.VERSION}", "rank": adapter.rank}
    told |= {"needs": f"vllm>={rules.VERSION}"} if adapter.patterned else {}
    options = {"model": base.folder, "enable_lora": True, "max_lora_rank": max(rank or 0, rules.RANK)}
    return Served(_joined(lines), told, options)


def _remarks(job: Job, base: Base, adapter: rules.Adapter) -> list[str]:
    """What whoever serves the adapter has to know beside the command."""
    lines = []
    if adapter.patterned:
        lines.append(
            f"It needs **vLLM {rules.VERSION} or later**: its targets have several ranks or alphas "
            f"({' and '.join(field for field in rules.PATTERNS if adapter.config.get(field))} of {CONFIG}), which "
            "earlier versions may pass over without a word."
        )
    if (bits := job.run.recipe.model.quantization) is not None:
        lines.append(
            f"It was trained on the base in {bits.bits} bits; vLLM serves the base as it is stored, which answers a "
            "little otherwise. `--type merged` writes the weights that training saw."
        )
    if ends := _ends(job, base):
        lines.append(
            "A text also ends with a token that vLLM does not know for an end, since it asks the base for them: ask "
            f'with `"stop_token_ids": {json.dumps(ends)}`.'
        )
    return lines


def _ends(job: Job, base: Base) -> list[int]:
    """Ids that end a text since training, and are no end in what vLLM asks: the base's tokenizer and settings."""
    from transformers import AutoTokenizer, GenerationConfig

    task = task_of(job.run.recipe.task)
    if not task.generates:
        return []
    config = load.load_config(base, job.run.recipe.model)
    stored = (base.folder / "generation_config.json").exists()
    settings = GenerationConfig.from_pretrained(base.folder) if stored else GenerationConfig.from_model_config(config)
    known = settings.eos_token_id
    before = {known} if isinstance(known, int) else set(known or [])
    before.add(load.load_tokenizer(base, job.run.recipe.model).eos_token_id)
    return [each for each in stop_ids(settings, AutoTokenizer.from_pretrained(job.run.artifact)) if each not in before]


def _pooling(task: Task) -> list[str]:
    """The flags for a model that writes no text."""
    if task.generates:
        return []
    how = task.pooling
    if how not in POOLINGS:
        return ["--runner", "pooling"]
    pooler = json.dumps({"seq_pooling_type": POOLINGS[how]})
    return ["--runner", "pooling", "--convert", "embed", "--pooler-config", pooler]


def _base(job: Job) -> str:
    """The base, in words."""
    base = job.run.manifest["base"]
    named = base["name"] if base["origin"] == "hub" else Path(base["source"] or base["name"]).name
    return f"{named}, revision {base['commit']}" if base["commit"] else str(named)


def _command(served: Sequence[str], flags: Sequence[str]) -> str:
    return shlex.join(["vllm", "serve", *served, *flags])


def _serving(command: str) -> list[str]:
    return ["## Serving", f"```bash\n{command}\n```"]


def _joined(lines: Sequence[str]) -> str:
    return "\n\n".join(lines) + "\n"
