"""A recipe from a file: every fault at once, each with its line, before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from peftctl.errors import Fault, Place, RecipeError
from peftctl.formats import FORMATS
from peftctl.methods import METHODS
from peftctl.nearest import nearest
from peftctl.recipe import nodes, rules
from peftctl.recipe.nodes import Document
from peftctl.recipe.schema import SECTIONS, EvalSource, Recipe, Source
from peftctl.settings import Settings
from peftctl.tasks import TASKS

MAX_BYTES = 100_000
NEEDED = ("model", "data", "method", "output")
PLAIN = ("output",)

# What pydantic calls a wrong type, in the words of a recipe.
TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def load(path: Path, output: str | None = None) -> Recipe:
    """The recipe in ``path``. ``output`` replaces its run directory. Raises RecipeError with all its faults."""
    document = nodes.parse(read_text(path), str(path))
    if output is not None:
        document.values["output"] = output
        document.places["output",] = Place("--output")
    return build(document, path.absolute().parent)


def read_text(path: Path) -> str:
    """The text of a recipe file. Raises RecipeError where it is absent, too large or not UTF-8."""
    place = Place(str(path))
    try:
        if path.stat().st_size > MAX_BYTES and path.is_file():
            raise RecipeError([Fault(place, "", "too large for a recipe", f"{path.stat().st_size} bytes", "100 kB")])
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            [Fault(place, "", f"not UTF-8 text: byte {error.start} is {error.object[error.start]:#x}")]
        ) from None
    except IsADirectoryError:
        raise RecipeError([Fault(place, "", "is a folder, not a recipe")]) from None
    except OSError as error:
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else [])
        problem = f"cannot be read: {error.strerror}"
        raise RecipeError([Fault(place, "", problem, nearest=str(path.with_name(near)) if near else "")]) from None


def build(document: Document, folder: Path) -> Recipe:
    """The recipe that ``document`` holds. Raises RecipeError with all its faults."""
    faults: list[Fault] = []
    known = [*SECTIONS, *PLAIN]
    for key in document.values:
        if key not in known:
            faults.append(_unknown(document, (key,), known))
    for key in NEEDED:
        if key not in document.values:
            faults.append(Fault(document.place(()), key, "is missing"))
    sections: dict[str, Any] = {}
    for name, settings in SECTIONS.items():
        if name in document.values:
            sections[name] = _section(document, name, settings, faults)
    output = document.values.get("output")
    if "output" in document.values and (not isinstance(output, str) or not output.strip()):
        faults.append(_fault(document, ("output",), "must be text", output, "the run directory"))
    faults += rules.faults(document)
    if faults:
        raise RecipeError(faults)
    return Recipe(**sections, output=str(output), folder=folder)


def _section(document: Document, name: str, settings: type[Settings], faults: list[Fault]) -> Settings | None:
    """One section as its settings, or None with the reasons added to ``faults``."""
    values = document.values[name]
    if name == "method":
        values = {"name": values} if isinstance(values, str) else values
        method = METHODS.get(str(values.get("name"))) if isinstance(values, dict) else None
        if method is None:
            faults.append(_unknown_name(document, name, values, METHODS))
            return None
        settings = method.settings
    values = _spelled_out(name, values, settings)
    try:
        section = settings.model_validate(values)
    except ValidationError as error:
        faults += [_translate(document, (name, *detail["loc"]), detail, settings) for detail in error.errors()]
        return None
    if name == "task" and section.name not in TASKS:  # type: ignore[attr-defined]
        faults.append(_unknown_name(document, name, values, TASKS))
    if name == "data":
        _check_formats(document, values, faults)
    return section


def _spelled_out(name: str, values: Any, settings: type[Settings]) -> Any:
    """``values`` with what is written as one word opened to the mapping it stands for."""
    if isinstance(values, str | int | float | bool) and settings.shorthand:
        return {settings.shorthand: values}
    if name == "data" and isinstance(values, dict):
        train, held_out = values.get("train"), values.get("eval")
        sources = train if isinstance(train, list) else [train]
        opened = dict(values)
        if "train" in values:
            opened["train"] = [_spelled_out("train", source, Source) for source in sources]
        if "eval" in values:
            opened["eval"] = _spelled_out("eval", held_out, EvalSource)
        return opened
    return values


def _check_formats(document: Document, values: Mapping[str, Any], faults: list[Fault]) -> None:
    train = document.values["data"]["train"]
    for index, source in enumerate(values["train"]):
        path: nodes.Path = ("data", "train", index) if isinstance(train, list) else ("data", "train")
        if source.get("format", "auto") not in ("auto", *FORMATS):
            faults.append(_fault(document, (*path, "format"), "no such format", source["format"], ["auto", *FORMATS]))
    held_out = values.get("eval") or {}
    if held_out.get("format", "auto") not in ("auto", *FORMATS):
        faults.append(
            _fault(document, ("data", "eval", "format"), "no such format", held_out["format"], ["auto", *FORMATS])
        )


def _translate(document: Document, path: nodes.Path, detail: ErrorDetails, settings: type[Settings]) -> Fault:
    """A pydantic error as a fault. ``path`` may hold an index where the recipe wrote a single source."""
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    if path[:3] == ("data", "train", 0) and not isinstance(document.values["data"].get("train"), list):
        path = ("data", "train", *path[3:])
    path = tuple(part for part in path if part not in ("str", "tuple[str, ...]"))
    if kind == "extra_forbidden":
        return _unknown(document, path, _fields(settings, path))
    if kind == "missing":
        return Fault(document.place(path), nodes.dotted(path), "is missing")
    if kind in TYPES:
        hint = " (put it in quotes)" if kind == "string_type" and isinstance(found, bool | int | float) else ""
        return _fault(document, path, f"must be {TYPES[kind]}{hint}", found)
    if kind == "literal_error":
        allowed = [word.strip("'") for word in str(context["expected"]).replace(" or ", ", ").split(", ")]
        return _fault(document, path, "no such value", found, allowed)
    limits = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    said = [f"{text} {context[key]}" for key, text in limits.items() if key in context]
    if said:
        return _fault(document, path, "out of range", found, said[0])
    if kind in ("too_short", "string_too_short"):
        return _fault(document, path, "too short", found, f"at least {context['min_length']}")
    return _fault(document, path, detail["msg"], found)


def _fields(settings: type[Settings], path: nodes.Path) -> list[str]:
    """The settings known at the place where ``path``'s last part is not one."""
    if path[:2] == ("data", "train") and len(path) > 2:
        return list(Source.model_fields)
    if path[:2] == ("data", "eval") and len(path) > 2:
        return list(EvalSource.model_fields)
    return list(settings.model_fields)


def _unknown(document: Document, path: nodes.Path, known: list[str]) -> Fault:
    near = nearest(str(path[-1]), known)
    return Fault(document.place(path), nodes.dotted(path), "no such setting", "", ", ".join(known), near)


def _unknown_name(document: Document, section: str, values: Any, table: Mapping[str, Any]) -> Fault:
    path: nodes.Path = (section, "name")
    if isinstance(values, dict):
        if "name" not in values:
            return Fault(document.place((section,)), f"{section}.name", "is missing", "", ", ".join(table))
        return _fault(document, path, f"no such {section}", values["name"], list(table))
    return _fault(document, (section,), f"must be a {section}'s name or a mapping", values, list(table))


def _fault(document: Document, path: nodes.Path, problem: str, found: Any, allowed: str | list[str] = "") -> Fault:
    near = nearest(found, allowed) if isinstance(allowed, list) and isinstance(found, str) else ""
    shown = ", ".join(allowed) if isinstance(allowed, list) else allowed
    return Fault(document.place(path), nodes.dotted(path), problem, show(found), shown, near)


def show(value: Any) -> str:
    """A value as the recipe would write it, cut to a readable length."""
    text = (
        {True: "true", False: "false", None: "nothing"}.get(value) if value is None or isinstance(value, bool) else None
    )
    text = text or (repr(value) if isinstance(value, str) else "a mapping" if isinstance(value, dict) else str(value))
    return text if len(text) <= 60 else text[:57] + "..."
