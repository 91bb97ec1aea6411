"""A method in words: its module's own, and its settings with their defaults."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic.fields import FieldInfo

from peftctl.methods.contract import Method

WIDTH = 100
DEFAULT = " Default: "  # how a setting says what it is where that depends on others


def described(method: Method) -> str:
    """What the method is, with its formula and paper, and every setting with its default and what it means."""
    lines = []
    for name, declared in method.settings.model_fields.items():
        if name != "name":
            meaning, _, _ = (declared.description or "").partition(DEFAULT)
            needed = name in method.settings.needed
            lines.append(f"  {name} = {'(must be said)' if needed else default(declared)}")
            lines += textwrap.wrap(meaning, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join([method.words, "", f"Settings (learning_rate {method.learning_rate:g}):", *lines, ""])


def default(declared: FieldInfo) -> str:
    """A setting's default as a recipe would write it, or in words where it depends on others."""
    value = declared.default
    if value is None or value == ():
        _, _, words = (declared.description or "").partition(DEFAULT)
        return f"({words.removesuffix('.')})" if words else "none"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


COLUMNS = ("families", "tasks", "4 bit", "8 bit", "bfloat16", "checkpointing", "packing", "merges")
YES = "yes"


def row(able: Mapping[str, Any]) -> list[str]:
    """What a method was seen to do, by the table of capabilities, in a word for each of ``COLUMNS``."""
    families, tasks = able["families"], able["tasks"]
    others = [said for what, said in cells(able) if what not in families and what not in tasks]
    return [_named(families), _named(tasks), *("yes" if said == YES else "no" for said in others)]


def _named(tried: Mapping[str, str]) -> str:
    """Those of ``tried`` that worked, in few words."""
    works = [name for name, said in tried.items() if said == YES]
    if len(works) == len(tried):
        return "all"
    if 2 * len(works) > len(tried):
        return "all but " + ", ".join(name for name in tried if name not in works)
    return ", ".join(works) or "none"


def cells(able: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Everything that a method was tried on, and "yes" or why not."""
    yield from able["families"].items()
    yield from able["tasks"].items()
    for bits, said in able["quantization"].items():
        yield f"{bits} bit", said
    for what in ("bfloat16", "checkpointing", "packing", "merges"):
        yield what, able[what]


def refused(able: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What it does not do, and why: what has the same reason together."""
    by_reason: dict[str, list[str]] = {}
    for what, said in cells(able):
        if said != YES:
            by_reason.setdefault(said.rstrip("."), []).append(what)
    for reason, places in by_reason.items():
        yield ", ".join(places), reason
