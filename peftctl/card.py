"""A model card, README.md of what is shared: front matter for the hub, what it is, how it was trained, its licence."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from peftctl.run import Run
from peftctl.tasks import task_of

LICENCE = ("license", "license_name", "license_link")  # the hub's keys
TRAINING = "## Training"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
PACKAGES = ("torch", "transformers", "peft")


@dataclass(frozen=True)
class Form:
    """What a folder holds, in the hub's words: what loads it, how it came of its base, and tags."""

    loader: str
    relation: str
    tags: tuple[str, ...] = ()


def form_of(folder: Path) -> Form:
    """The form of what was exported, by its files."""
    if (folder / "adapter_config.json").exists():
        return Form("peft", "adapter")
    if files := [path.name for path in folder.rglob("*.gguf")]:
        return Form("gguf", "adapter" if files == ["adapter.gguf"] else "finetune", ("gguf",))
    if any(folder.rglob("*.onnx")):
        return Form("onnx", "finetune", ("onnx",))
    return Form("transformers", "finetune")


def title(run: Run) -> str:
    """What the result is called: its base, and how it was trained."""
    base = run.manifest["base"]
    return f"{Path(str(base['source'] or base['name'])).name}, {run.recipe.method.name}"


def card(run: Run, form: Form, words: str, licence: Mapping[str, str]) -> str:
    """The card of what a run became. ``words``: the form's own paragraphs, from its title on. ``licence``: what the
    base's card says of that, nothing where it is not known."""
    named = licence.get("license_name") or licence.get("license")
    terms = f"That of the base, as its card says: {named}." if named else "Not known: no card of the base names one."
    parts = [front_matter(run, form, licence) + words.strip()]
    parts += [] if TRAINING in words else [training(run).strip()]
    return "\n\n".join([*parts, f"## Licence\n\n{terms}"]) + "\n"


def front_matter(run: Run, form: Form, licence: Mapping[str, str]) -> str:
    """What the hub reads of a card. The base is named where it is the hub's, and data sets that are."""
    base, task = run.manifest["base"], task_of(run.recipe.task)
    said: dict[str, Any] = {"library_name": form.loader}
    if base["origin"] == "hub":
        said |= {"base_model": base["name"], "base_model_relation": form.relation}
    if task.pipeline:
        said["pipeline_tag"] = task.pipeline
    said |= {key: licence[key] for key in LICENCE if licence.get(key)}
    if sets := [name for name in run.manifest["data"]["hub"] if HUB_ID.fullmatch(name)]:
        said["datasets"] = sets
    said["tags"] = list(dict.fromkeys(["peftctl", run.manifest["method"]["name"], *form.tags]))
    return f"---\n{yaml.safe_dump(said, sort_keys=False, allow_unicode=True)}---\n\n"


def training(run: Run) -> str:
    """How it was trained: task, method, data, what was measured, and with which versions."""
    facts = run.manifest
    rows = facts["data"]["train"].get("rows")
    lines = [f"- task: {facts['task']}", f"- method: {_method(facts['method'])}", *_base(facts)]
    lines += [f"- data: {each}" for each in _data(facts["data"])]
    lines += [f"- rows: {rows:,}"] if rows else []
    lines += [f"- steps: {facts['steps']}", f"- trained parameters: {facts['trainable_parameters']:,}"]
    lines += [f"- held-out {name}: {value:.4g}" for name, value in _metrics(facts["metrics"])]
    lines += _versions(run)
    return f"{TRAINING}\n\n" + "\n".join(lines) + "\n"


def licence_in(folder: Path) -> dict[str, str]:
    """What the card in a model's folder says of its licence; nothing where there is no such card."""
    with suppress(OSError, ValueError, yaml.YAMLError):
        text = (folder / "README.md").read_text("utf-8")
        said = yaml.safe_load(text.split("---\n")[1]) if text.startswith("---\n") else {}
        return licence(said if isinstance(said, dict) else {}, "")
    return {}


def licence(said: Mapping[str, Any], page: str) -> dict[str, str]:
    """The licence in a card's front matter; a link within its repo is made one to ``page``, where that is known."""
    found = {key: value for key in LICENCE if isinstance(value := said.get(key), str)}
    if (link := found.get("license_link")) and "://" not in link:
        found.pop("license_link")
        found |= {"license_link": f"{page}/blob/main/{link}"} if page else {}
    return found


def _method(settings: Mapping[str, Any]) -> str:
    """Its name, and the settings that say something."""
    said = {name: value for name, value in settings.items() if name != "name" and value and value != "default"}
    return ", ".join([settings["name"], *(f"{name} {_short(value)}" for name, value in said.items())])


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def _base(facts: Mapping[str, Any]) -> list[str]:
    base, bits = facts["base"], facts.get("quantization")
    named = base["name"] if base["origin"] == "hub" else Path(base["source"] or base["name"]).name
    at = f", revision {base['commit']}" if base["commit"] else ""
    return [f"- base: {named}{at}" + (f", in {bits['bits']} bits" if bits else "")]


def _data(data: Mapping[str, Any]) -> Iterator[str]:
    for name, digest in data["files"].items():
        yield f"{name.rsplit('/', 1)[-1]}, SHA-256 {digest}"  # where it lay is nobody else's business
    for name, revision in data["hub"].items():
        yield f"{name}, revision {revision}"


def _metrics(metrics: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield from ((name, value) for name, value in metrics.items() if isinstance(value, float))
    for group in ("likeliest", "written"):
        yield from ((f"{group} {name}", v) for name, v in (metrics.get(group) or {}).items() if isinstance(v, float))


def _versions(run: Run) -> list[str]:
    try:
        environment = json.loads((run.path / "environment.json").read_text("utf-8"))
        packages = [f"{name} {environment['packages'][name]}" for name in PACKAGES]
        versions = [f"peftctl {environment['peftctl']}", *packages, f"Python {environment['python']}"]
    except (OSError, ValueError, KeyError, TypeError):  # no part of what the manifest seals
        return []
    return [f"- versions: {', '.join(versions)}"]
