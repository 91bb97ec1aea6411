"""A recipe from a file: every fault at once, each with its line, before anything heavy is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from peftctl.crashlog import SECRET_NAMES
from peftctl.errors import Fault, Place, RecipeError
from peftctl.formats import FORMATS
from peftctl.methods import METHODS, OWN
from peftctl.methods.presets import PRESETS, VARIANTS, variant
from peftctl.nearest import nearest
from peftctl.recipe import nodes, rules
from peftctl.recipe.compose import MAX_BYTES, SET, compose, merge
from peftctl.recipe.explain import fault, section_fault, unknown, yaml_hint
from peftctl.recipe.nodes import Document
from peftctl.recipe.schema import NEEDED, SECTIONS, Recipe
from peftctl.recipe.task_settings import TaskSettings
from peftctl.settings import Settings
from peftctl.tasks import TASKS

PLAIN = ("output", "extends")
ALLOWED = f"{', '.join([*OWN, *PRESETS])}, or another that `peftctl methods` lists"


def load(path: Path, output: str | None = None, overrides: Sequence[str] = (), *, max_bytes: int = MAX_BYTES) -> Recipe:
    """The recipe in ``path``, with ``key.path=value`` overrides; ``output`` replaces its run directory.

    Raises RecipeError with all its faults.
    """
    document = compose(path, overrides, max_bytes)
    if output is not None:
        place = Place("--output")
        merge(document, Document("--output", {"output": output}, {("output",): place}, {("output",): output}))
    return build(document, path.absolute().parent)


def build(document: Document, folder: Path) -> Recipe:
    """The recipe that ``document`` holds. Raises RecipeError with all its faults."""
    faults: list[Fault] = []
    known = [*SECTIONS, *PLAIN]
    faults += [unknown(document, (key,), known) for key in document.values if key not in known]
    for key in NEEDED:
        if key not in document.values:
            faults.append(Fault(document.place(()), key, f"is missing (a recipe needs {', '.join(NEEDED)})"))
    sections: dict[str, Any] = {}
    for name, settings in SECTIONS.items():
        if name in document.values:
            sections[name] = _section(document, name, settings, faults)
    output = document.values.get("output")
    if "output" in document.values and (not isinstance(output, str) or not output.strip()):
        problem = "must be text" + yaml_hint(document, ("output",), output)
        faults.append(fault(document, ("output",), problem, output, "the run directory"))
    faults += rules.faults(document)
    if faults:
        raise RecipeError(faults)
    return Recipe(**sections, output=str(output), folder=folder, origins=_origins(document), secrets=_secrets(document))


def _section(document: Document, name: str, settings: type[Settings], faults: list[Fault]) -> Settings | None:
    """One section as its settings, or None with the reasons added to ``faults``."""
    values = document.values[name]
    before = len(faults)
    for path, table in _names(document, name):
        found = document.at(path)
        if name == "method" and isinstance(found, str) and (words := variant(found)):
            method_name, setting = VARIANTS[found.lower()]
            goes = f"{{name: {method_name}, {setting}}}"
            faults.append(Fault(document.place(path), nodes.dotted(path), f"{found} is {words}", allowed=goes))
        elif isinstance(found, str) and found not in table:
            faults.append(
                fault(
                    document,
                    path,
                    f"no such {path[-1] if path[-1] != 'name' else name}",
                    found,
                    list(table),
                    ALLOWED if name == "method" else "",
                )
            )
    if name == "method":
        method = METHODS.get(str(values.get("name"))) if isinstance(values, dict) else None
        if method is None:
            if len(faults) == before:
                faults.append(_no_method(document, values))
            if isinstance(values, dict):
                faults += _whatever_the_method(document, values)
            return None
        settings = method.settings
    try:
        return settings.model_validate(values)
    except ValidationError as error:
        faults += [section_fault(document, name, detail, settings) for detail in error.errors() if not _echo(detail)]
        return None


def _whatever_the_method(document: Document, values: Mapping[str, Any]) -> list[Fault]:
    """What is wrong with the settings although no method is named: for the one nearest to the name, or all our own."""
    found = values.get("name")
    near = (VARIANTS.get(found.lower(), ("",))[0] or nearest(found, METHODS)) if isinstance(found, str) else ""
    of_methods = []
    for method in [METHODS[near]] if near else map(METHODS.__getitem__, OWN):
        try:
            method.settings.model_validate({**values, "name": method.name})
            return []
        except ValidationError as error:
            details = [detail for detail in error.errors() if not _echo(detail)]
            of_methods.append(
                {
                    (detail["loc"], detail["type"]): section_fault(document, "method", detail, method.settings)
                    for detail in details
                }
            )
    common = set(of_methods[0]).intersection(*of_methods[1:])
    if near:
        return [each for key, each in of_methods[0].items() if key in common]
    of_any = list(dict.fromkeys(name for own in OWN for name in METHODS[own].settings.model_fields))
    return [
        unknown(document, ("method", *key[0]), of_any) if key[1] == "extra_forbidden" else each
        for key, each in of_methods[0].items()
        if key in common
    ]


def _echo(detail: ErrorDetails) -> bool:
    """Whether pydantic calls a list too short only because it counts none of its faulty items."""
    return detail["type"] == "too_short" and len(detail["input"]) >= detail["ctx"]["min_length"]


def _names(document: Document, section: str) -> list[tuple[nodes.Path, Mapping[str, Any]]]:
    """Settings whose values are the names of a table's members, which no type can list."""
    if section == "task":
        return [(("task", "name"), TASKS)]
    if section == "method":
        return [(("method", "name"), {**METHODS, **PRESETS})]
    if section == "data":
        task = TASKS.get(str(document.at(("task", "name")) or TaskSettings().name))
        able = [fmt for fmt in FORMATS.values() if task is None or set(fmt.makes) & set(task.accepts)]
        formats = {"auto": None, **{fmt.name: fmt for fmt in able}}
        train = document.at(("data", "train"))
        count = len(train) if isinstance(train, list) else 0
        places: list[nodes.Path] = [("data", "train", index, "format") for index in range(count)]
        return [(path, formats) for path in (*places, ("data", "eval", "format"))]
    return []


def _no_method(document: Document, values: Any) -> Fault:
    if isinstance(values, dict) and "name" not in values:
        return Fault(document.place(("method",)), "method.name", "is missing", allowed=ALLOWED)
    path: nodes.Path = ("method", "name") if isinstance(values, dict) else ("method",)
    return fault(document, path, "must be a method's name", document.at(path), [*METHODS, *PRESETS], ALLOWED)


def _secrets(document: Document) -> dict[str, str]:
    """What is to be written as the reference it came from: secrets, and text that would be read as a reference."""
    values = {os.environ[name]: name for name in sorted(document.env_names)}
    return {
        value: f"${{env:{name}}}"
        for value, name in values.items()
        if value and (SECRET_NAMES.search(name) or "${" in value)
    }


def _origins(document: Document) -> dict[str, str]:
    """For every value that was written, who wrote it: the recipe, the recipe it extends, or an option."""
    origins = {}
    for path, place in document.places.items():
        if place.file.startswith(SET):
            origins[nodes.dotted(path)] = SET
        else:
            origins[nodes.dotted(path)] = place.file if place.file.startswith("--") else Path(place.file).name
    return origins
