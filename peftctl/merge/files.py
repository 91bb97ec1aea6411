"""What a merged model's folder holds beside the weights: all that it takes to be loaded and used by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftctl.atomic import write_json, write_text
from peftctl.card import training
from peftctl.generate import stop_ids
from peftctl.merge import vectors
from peftctl.merge.source import Source
from peftctl.model import load
from peftctl.model.auto import auto_class
from peftctl.model.locate import Base

LARGEST = 50_000_000
# Of the base's folder: what is made anew here, or belongs to the folder as it was published.
OWN = ("config.json", "generation_config.json", "README.md", "source.json", ".gitattributes")
WEIGHT_FILES = (
    "*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.h5", "*.msgpack", "*.onnx",
    "*.npz", "*.ot",
)  # fmt: skip
# Of an adapter's folder.
ADAPTERS = ("adapter_*", "README.md", "peftctl_*", "*.safetensors", "*.bin", "manifest.json", "training_args*")


def config(source: Source, folder: Path, changes: Mapping[str, Any], dtype: str | None) -> None:
    """The base's config.json with what is otherwise now; a change goes where the base's config says the same thing."""
    said = json.loads((source.base.folder / "config.json").read_text("utf-8"))
    for name, value in changes.items():
        parts = [part for part in (said, said.get("text_config")) if isinstance(part, dict) and name in part]
        for part in parts or [said]:
            part[name] = value
    if source.task.head:
        said |= _of_head(source)
    if dtype:
        parts = [said, *(part for part in said.values() if isinstance(part, dict))]
        for part in parts:
            for name in ("dtype", "torch_dtype"):
                if name in part or (part is said and name == "dtype" and "torch_dtype" not in said):
                    part[name] = dtype
    write_json(folder / "config.json", said)


def _of_head(source: Source) -> dict[str, Any]:
    """What config.json says of a task's head: the class of the model, and the names of its labels."""
    config = load.load_config(source.base, source.model)
    source.task.configure(config)
    made = auto_class(source.task, config)._model_mapping[type(config)]
    said = config.to_dict()
    kept = {name: said[name] for name in ("id2label", "label2id", "problem_type") if said.get(name) is not None}
    return {"architectures": [made.__name__], **kept}


def with_tokenizer(source: Source) -> Base:
    """The base, in the folder that the tokenizer is taken from: the adapter's, which has it as training had it."""
    has = any(source.part.folder.glob("tokenizer*"))
    return replace(source.base, folder=source.part.folder) if has else source.base


def others(source: Source, folder: Path) -> None:
    """The tokenizer with its chat template, and whatever else the base needs."""
    if (trained := with_tokenizer(source).folder) != source.base.folder:
        _copy(trained, folder, ADAPTERS)
    _copy(source.base.folder, folder, (*OWN, *WEIGHT_FILES, *vectors.FILES))
    vectors.copy(source.base.folder, folder, source.task.pooling)


def generation(source: Source, model_config: Any, folder: Path) -> None:
    """The base's generation config, with every token that ends a text since training."""
    from transformers import GenerationConfig

    tokenizer = load.load_tokenizer(replace(source.base, folder=folder), source.model)
    if (source.base.folder / "generation_config.json").exists():
        settings = GenerationConfig.from_pretrained(source.base.folder)
    else:
        settings = GenerationConfig.from_model_config(model_config)
    ends = stop_ids(settings, tokenizer)
    settings.eos_token_id = ends[0] if len(ends) == 1 else ends
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    settings.save_pretrained(folder)


def card(source: Source, facts: Mapping[str, Any], folder: Path) -> None:
    """README.md: what it is, from what, and how it was checked."""
    base, run = source.base, source.run
    named = base.source.name if base.source else (base.name if base.origin == "hub" else Path(base.name).name)
    at = f", revision {base.commit}" if base.commit else ""
    lines = [f"# {named}, {source.part.method.name}", ""]
    several = len(source.parts) > 1
    lines += [
        f"{named}{at} with {'adapters' if several else 'an adapter'} trained by "
        f"{source.part.method.name} merged into its weights by peftctl.",
        f"It loads with `{_loads(source)}.from_pretrained` alone.",
        "",
    ]
    lines += [
        f"- {part.folder.parent.name}/{part.folder.name}, weight {part.weight:g}" for part in source.parts if several
    ]
    lines += ["Several adapters were combined; manifest.json says how.", ""] if several else []
    lines += [f"**The base is not the one that was trained on**: {source.forced}", ""] if source.forced else []
    if run is not None and not several and not source.forced:
        lines += [training(run)]
    lines += ["## Merging", ""]
    # Not how long it took: the same merge gives the same bytes.
    lines += [f"- weights: {facts['dtype']}, merged {facts['way']} onto {facts['onto']}"]
    if "changed" in facts:
        lines += [f"- tensors: {facts['changed']} changed, {facts['same']} as they were"]
    if "worst_difference" in facts:
        lines += [f"- layers compute what base and adapter do, to {facts['worst_difference']:.2g}"]
    if "kl" in facts:
        lines += [
            f"- logits: divergence (KL) {facts['kl']:.3g}, the likeliest is the same at {100 * facts['top1']:.4g} %"
        ]
    write_text(folder / "README.md", "\n".join(lines) + "\n")


def _loads(source: Source) -> str:
    return str(auto_class(source.task, load.load_config(source.base, source.model)).__name__)


def _copy(here: Path, there: Path, but: tuple[str, ...]) -> None:
    for path in sorted(here.iterdir()):
        if not path.is_file() or path.stat().st_size > LARGEST or any(path.match(pattern) for pattern in but):
            continue
        if not (there / path.name).exists():
            shutil.copyfile(path, there / path.name)
