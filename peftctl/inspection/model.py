"""A base model as facts: what its config makes, and what of it is on disk."""

from __future__ import annotations

import dataclasses
import functools
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftctl.errors import MachineError, UsageError
from peftctl.inspection import bounded, gguf_head, weights
from peftctl.inspection.apart import Apart, Question
from peftctl.inspection.bounded import Tensor
from peftctl.inspection.facts import Architecture
from peftctl.inspection.gguf_head import Stored
from peftctl.inspection.weights import Disk
from peftctl.inspection.what import CONFIG, What, beside

Source = Literal["folder", "config", "gguf", "hub"]
FILE: Source = "gguf"
SOURCES: dict[str, Source] = {"model": "folder", "config": "config", FILE: FILE, "hub": "hub"}
CONFIG_BYTES = 8_000_000  # of a config.json: labels of thousands of classes take two
# What a config may ask for of what is built one by one, by how such a setting is called.
MOST = (
    (re.compile(r"(\w+_)?(layers|blocks|depth)|n_layer|num_layer|n_block"), 2_000),
    (re.compile(r"\w*experts"), 100_000),
    (re.compile(r"num_(labels|classes)"), 1_000_000),
)


@dataclass(frozen=True)
class ModelFacts:
    """``name`` as it was asked for; ``source``: what that is; ``commit`` of a hub model. ``architecture`` is None and
    ``tensors`` are listed where a GGUF file's is none that transformers builds; ``disk`` is None where there are no
    weights, or none that are read, for the reason ``unread``; ``notes`` say what else is to be known.
    """

    name: str
    source: Source
    path: str
    commit: str | None
    quantization: str
    disk: Disk | None
    architecture: Architecture | None
    tensors: tuple[Stored, ...] = ()
    notes: tuple[str, ...] = ()
    unread: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for programs."""
        return {"kind": "model", **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Asked:
    """What to say beside what is always said."""

    tree: bool = False
    pattern: str | None = None
    by_peft: bool = False
    revision: str | None = None

    def of(self, **about: Any) -> Question:
        """The question to ask about a config, or about a GGUF file's settings."""
        return Question(**about, tree=self.tree, pattern=self.pattern, by_peft=self.by_peft)


def model_facts(what: What, asked: Asked, apart: Apart, note: Callable[[str], None]) -> ModelFacts:
    """The facts of a model that ``what`` stands for: a folder, a config, a GGUF file or a hub id.

    A hub model's weights are not fetched. Raises UsageError where there is no such model or it cannot be built,
    MachineError where the hub cannot be reached.
    """
    _reader()  # while the other process is still importing
    if what.kind == FILE:
        return _of_gguf(what, asked, apart)
    folder, commit = what.path, None
    if what.kind == "hub":
        folder, commit = _fetch(what.name, asked.revision, note)
    settings = read_settings(folder if what.kind == "config" else folder / CONFIG)
    files, unread = ({}, "") if what.kind == "config" else _weights(folder, fetched=commit is None)
    disk, stored = weights.disk_of(files), weights.shapes(files, settings)
    found = apart.ask(asked.of(settings=settings, stored=stored))
    return ModelFacts(
        what.name,
        SOURCES[what.kind],
        str(folder),
        commit,
        weights.quantization(settings),
        disk,
        read_architecture(found),
        unread=unread,
    )


def read_settings(path: Path) -> dict[str, Any]:
    """A config.json's settings. Raises UsageError where it is none, or asks for more than any model has."""
    settings = bounded.json_object(path, CONFIG_BYTES)
    kind = settings.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise UsageError(f"{path} names no model_type, so there is no telling what it is a config of")
    for key, value in _numbers(settings):
        most = next((most for called, most in MOST if called.fullmatch(key)), value)
        if value > most:
            raise UsageError(f"{path}: {key}: more than any model has (found {value:,}); allowed: at most {most:,}")
    return settings


def _numbers(settings: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Whole numbers with their keys, from sections too."""
    found = [(key, value) for key, value in settings.items() if type(value) is int]
    for value in settings.values():
        if isinstance(value, Mapping):
            found += _numbers(value)
    return found


@functools.cache
def _reader() -> Any:
    """What makes facts of JSON. Making it takes a tenth of a second."""
    from pydantic import TypeAdapter

    return TypeAdapter(Architecture)


def read_architecture(found: Mapping[str, Any]) -> Architecture:
    """The facts that came as JSON, as they were."""
    read: Architecture = _reader().validate_python(found)
    return read


def _fetch(name: str, revision: str | None, note: Callable[[str], None]) -> tuple[Path, str]:
    """A hub model's folder, without its weights, and its commit."""
    from peftctl.model import hub

    try:
        snapshot = hub.fetch(name, revision, note=note, weights=False)
    except (UsageError, MachineError) as error:
        if near := beside(Path(name)):  # it may have been meant for something here
            raise type(error)(error.message, f"did you mean {near}? {error.hint}".strip()) from error
        raise
    return snapshot.folder, snapshot.commit


def _weights(folder: Path, *, fetched: bool) -> tuple[dict[Path, dict[str, Tensor]], str]:
    """The tensors in each file, or why none are read where some are there: the architecture is known anyway.

    Weights that were not ``fetched`` may be here all the same, and are not missed.
    """
    try:
        if not fetched and not all(map(bounded.is_file, bounded.weight_files(folder))):
            return {}, ""
        files = weights.headers(folder)
    except UsageError as error:
        return {}, error.message
    if not files and (pickles := bounded.pickles(folder)):
        return {}, f"they are pickles ({pickles[0]}), which can run any code when they are read: not opened"
    return files, ""


def _of_gguf(what: What, asked: Asked, apart: Apart) -> ModelFacts:
    head = gguf_head.head(what.path)
    with tempfile.TemporaryDirectory(prefix="peftctl-") as folder:
        (Path(folder) / "model.gguf").write_bytes(head.settings)
        question = asked.of(gguf=Path(folder), vocabulary=head.vocabulary)
        built, notes = None, tuple[str, ...]()
        try:
            built = read_architecture(apart.ask(question))
        except UsageError as error:
            if asked.tree or asked.pattern is not None:
                raise
            notes = (error.message,)
    tensors = () if built else head.tensors
    return ModelFacts(what.name, "gguf", str(what.path), None, "", head.disk, built, tensors, notes)
