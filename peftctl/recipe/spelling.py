"""A recipe's shorthands opened: one spelling for the rest of the program, whatever the recipe's author preferred."""

from __future__ import annotations

import copy
from typing import Any

from peftctl.errors import Fault, RecipeError
from peftctl.methods.presets import PRESETS
from peftctl.recipe.nodes import Document, Path
from peftctl.recipe.schema import SECTIONS, EvalSource, Source
from peftctl.settings import Settings


def spell_out(document: Document) -> None:
    """Open, in place: a word for a section (``model: x``), a source that is no list, a path for a source."""
    for name, settings in SECTIONS.items():
        _open(document, (name,), settings)
    data = document.values.get("data")
    if not isinstance(data, dict):
        return
    if "train" in data and not isinstance(data["train"], list):
        _into_list(document, ("data", "train"))
    for index in range(len(data["train"])) if isinstance(data.get("train"), list) else ():
        _open(document, ("data", "train", index), Source)
    _open(document, ("data", "eval"), EvalSource)


def spell_out_preset(document: Document) -> None:
    """Put, in place, a method with settings of other sections for a preset's name, where they are not said."""
    name = document.at(("method", "name"))
    preset = PRESETS.get(name) if isinstance(name, str) else None
    if preset is None:
        return
    place = document.place(("method", "name"))
    _put(document, ("method", "name"), preset.method)
    for key, value in preset.settings.items():
        path = tuple(key.split("."))
        section = document.at(path[:-1])
        if isinstance(section, dict) and section.get(path[-1], value) is None:
            problem, also = f"{name} is {preset.method} with {key}, which is nothing here", document.place(path)
            raise RecipeError([Fault(place, "method.name", problem, also=also)])
        if isinstance(section, dict) and path[-1] not in section:
            section[path[-1]] = copy.deepcopy(value)
            document.places[path] = place
            document.places.update({(*path, inner): place for inner in value})


def _open(document: Document, path: Path, settings: type[Settings]) -> None:
    """``value`` to ``{shorthand: value}`` where a plain value stands for a section."""
    value = document.at(path)
    if not settings.shorthand or not isinstance(value, str | int | float | bool):
        return
    _put(document, path, {settings.shorthand: value})
    named = (*path, settings.shorthand)
    document.places[named] = document.place(path)
    if path in document.written:
        document.written[named] = document.written.pop(path)


def _into_list(document: Document, path: Path) -> None:
    """A single item to a list of it, its places with it."""
    _put(document, path, [document.at(path)])
    for table in (document.places, document.written):
        inside: dict[Path, Any] = {key: table[key] for key in table if key[: len(path)] == path}
        for key, value in inside.items():
            if key != path:
                del table[key]
            table[*path, 0, *key[len(path) :]] = value


def _put(document: Document, path: Path, value: Any) -> None:
    parent = document.at(path[:-1])
    parent[path[-1]] = value
