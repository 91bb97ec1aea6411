"""What is wrong with a value, in the words of a recipe: pydantic finds it, this says it."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BeforeValidator
from pydantic_core import ErrorDetails

from peftctl.errors import Fault
from peftctl.methods import METHODS
from peftctl.nearest import nearest
from peftctl.recipe import nodes
from peftctl.recipe.foreign import OURS
from peftctl.recipe.nodes import Document
from peftctl.recipe.schema import DURATION, SECTIONS, SHA256, EvalSource, Source
from peftctl.settings import Settings

# What pydantic calls a wrong type, in the words of a recipe.
TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "finite_number": "a finite number",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}
# What a pattern of the schema stands for.
PATTERNS = {DURATION: "a length of time: 90m, 1h30m, 2d", SHA256: "64 hexadecimal digits, in small letters"}
LIMITS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
LONGEST_SHOWN = 60


def section_fault(document: Document, section: str, detail: ErrorDetails, settings: type[Settings]) -> Fault:
    """A pydantic error in a section as a fault with its place."""
    path: nodes.Path = (section, *detail["loc"])
    kind, found, context = detail["type"], detail["input"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return unknown(document, path, _fields(settings, path))
    if kind == "missing":
        return Fault(document.place(path), nodes.dotted(path), "is missing")
    if kind in ("model_type", "model_attributes_type") and len(detail["loc"]) == 1:
        inner = ", ".join(_fields(settings, (*path, "")))
        return fault(document, path, "must be a mapping", found, f"a mapping of {inner}")
    if kind == "string_type" and _pattern(settings, path) == DURATION:
        return fault(document, path, "has no unit", found, PATTERNS[DURATION])
    if kind in TYPES:
        hint = yaml_hint(document, path, found) if kind == "string_type" else ""
        wanted = "text or a list of it" if kind == "tuple_type" and _takes_text(settings, path) else TYPES[kind]
        return fault(document, path, f"must be {wanted}{hint}", found)
    if kind == "literal_error":
        allowed = [word.strip("'") for word in str(context["expected"]).replace(" or ", ", ").split(", ")]
        return fault(document, path, "no such value", found, allowed)
    if kind == "string_pattern_mismatch":
        return fault(document, path, "not written so", found, PATTERNS[context["pattern"]])
    limits = [f"{text} {context[key]:.12g}" for key, text in LIMITS.items() if key in context]
    if limits:
        return fault(document, path, "out of range", found, limits[0])
    if kind in ("too_short", "string_too_short"):
        what = "in the list" if kind == "too_short" else "letter"
        return fault(document, path, "too short", found, f"at least {context['min_length']} {what}")
    return fault(document, path, detail["msg"], found, context.get("allowed", ""))


def unknown(document: Document, path: nodes.Path, known: list[str]) -> Fault:
    """A key that is no setting."""
    near = _elsewhere(str(path[-1])) or nearest(str(path[-1]), known)
    if len(path) == 2 and near.startswith(f"{path[0]}.") and near.rpartition(".")[2] not in known:  # another method's
        near = nearest(str(path[-1]), known)
    return Fault(document.place(path), nodes.dotted(path), "no such setting", "", ", ".join(known), near)


def _elsewhere(key: str) -> str:
    """The full name of the setting that ``key`` is called in another section (seed is train.seed) or another tool."""
    sections = [*SECTIONS.items(), *(("method", method.settings) for method in METHODS.values())]
    full = {f"{name}.{setting}" for name, section in sections for setting in section.model_fields}
    found = {name for name in full if key in (name.split(".")[1], name.replace(".", "_"))}
    return OURS.get(key, min(found) if len(found) == 1 else "")


def _pattern(settings: type[Settings], path: nodes.Path) -> str | None:
    """The pattern that a setting of the section itself must have."""
    declared = settings.model_fields.get(str(path[-1])) if len(path) == 2 else None
    return next((made.pattern for made in declared.metadata if hasattr(made, "pattern")), None) if declared else None


def fault(
    document: Document, path: nodes.Path, problem: str, found: Any, allowed: str | list[str] = "", words: str = ""
) -> Fault:
    """A value that will not do, shown as it was written. ``words`` say what is allowed where the list is long."""
    near = nearest(found, allowed) if isinstance(allowed, list) and isinstance(found, str) else ""
    words = words or (", ".join(allowed) if isinstance(allowed, list) else allowed)
    return Fault(document.place(path), nodes.dotted(path), problem, shown(document, path, found), words, near)


def shown(document: Document, path: nodes.Path, found: Any) -> str:
    """A value as it was written, cut to a readable length; a reference to the environment as the reference."""
    written = document.written.get(path)
    if written is not None and ("${" in written or not isinstance(found, str)):
        text = written or "nothing"
    elif isinstance(found, dict | list | tuple):
        text = "a mapping" if isinstance(found, dict) else f"a list of {len(found)}"
    else:
        text = repr(found) if isinstance(found, str) else "nothing" if found is None else str(found)
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def yaml_hint(document: Document, path: nodes.Path, found: Any) -> str:
    """Why what looks like text is none: YAML 1.1 has many words for true and false, and numbers need no quotes."""
    written = document.written.get(path, "")
    if found is None or isinstance(found, str | dict | list):
        return ""
    if isinstance(found, bool) and written.lower() not in ("true", "false"):
        return f": YAML reads {written} as {str(found).lower()}; put it in quotes"
    return ": put it in quotes"


def _takes_text(settings: type[Settings], path: nodes.Path) -> bool:
    """Whether a list may be written as the one text in it."""
    declared = settings.model_fields.get(str(path[-1]))
    return declared is not None and any(isinstance(each, BeforeValidator) for each in declared.metadata)


def _fields(settings: type[Settings], path: nodes.Path) -> list[str]:
    """The settings known at the place where ``path``'s last part is not one."""
    if path[:2] == ("data", "train") and len(path) > 2:
        return list(Source.model_fields)
    if path[:2] == ("data", "eval") and len(path) > 2:
        return list(EvalSource.model_fields)
    for part in path[1:-1]:
        declared = settings.model_fields[str(part)].annotation
        for inner in (declared, *get_args(declared)):  # as it is, or or None
            if isinstance(inner, type) and issubclass(inner, Settings):
                settings = inner
    return list(settings.model_fields)
