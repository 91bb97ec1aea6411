"""The parts of a recipe as one document: the recipe it extends, the recipe, and what ``--set`` overrides.

Later parts win key by key; a list is replaced whole. Every value keeps the place it came from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

from peftctl.errors import Fault, Place, RecipeError
from peftctl.methods import METHODS
from peftctl.nearest import nearest
from peftctl.recipe.nodes import Document, Path, dotted, parse, parse_value
from peftctl.recipe.origin import URL, is_hub_id
from peftctl.recipe.spelling import spell_out, spell_out_preset

MAX_BYTES = 100_000
SET = "--set"

# Settings that name something to read. They are looked up beside the file that says them.
PATHS: tuple[Path, ...] = (
    ("model", "name"), ("data", "train", -1, "path"), ("data", "eval", "path"), ("data", "template"),
    ("train", "init_from"),
    *dict.fromkeys(("method", name, -1) for method in METHODS.values() for name in method.paths),
)  # fmt: skip


def compose(path: FilePath, overrides: Sequence[str] = (), max_bytes: int = MAX_BYTES) -> Document:
    """The whole recipe in ``path``. Raises RecipeError with every fault of its parts' form."""
    document = _with_bases(path, (), max_bytes)
    faults: list[Fault] = []
    for override in overrides:
        try:
            _set(document, override)
        except RecipeError as error:
            faults += error.faults
    if "extends" in document.values:
        faults.append(Fault(document.place(("extends",)), "extends", "can be said in a recipe only"))
    if faults:
        raise RecipeError(faults)
    spell_out(document)
    spell_out_preset(document)
    return document


def read_text(path: FilePath, max_bytes: int = MAX_BYTES) -> str:
    """The text of a recipe file. Raises RecipeError where it is absent, too large or not UTF-8."""
    place = Place(str(path))
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise RecipeError([Fault(place, "", "is a device or a pipe, not a recipe")])
        if path.is_file() and path.stat().st_size > max_bytes:
            raise RecipeError([Fault(place, "", "too large for a recipe", f"{path.stat().st_size:,} bytes", "100 kB")])
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        found = f"byte {error.object[error.start]:#04x}"
        raise RecipeError([Fault(Place(str(path), line), "", "not UTF-8 text", found)]) from None
    except IsADirectoryError:
        raise RecipeError([Fault(place, "", "is a folder, not a recipe")]) from None
    except OSError as error:
        absent = isinstance(error, FileNotFoundError) and os.path.isdir(path.parent)
        others = [each.name for each in path.parent.glob("*.y*ml") if each.name != path.name] if absent else []
        near = nearest(path.name, others)
        problem = f"cannot be read: {error.strerror}"
        raise RecipeError([Fault(place, "", problem, nearest=str(path.with_name(near)) if near else "")]) from None


def merge(document: Document, over: Document) -> None:
    """Put what ``over`` says over what ``document`` says, in place."""
    _merge(document.values, over.values, (), document)
    document.places.update(over.places)
    document.written.update(over.written)
    document.env_names |= over.env_names


def _with_bases(path: FilePath, seen: tuple[FilePath, ...], max_bytes: int) -> Document:
    """The document in ``path`` over the one it extends. ``seen``: the recipes that led here."""
    document = parse(read_text(path, max_bytes), str(path))
    spell_out(document)
    extends = document.values.pop("extends", None)
    if extends is None:
        return document
    place = document.place(("extends",))
    if not isinstance(extends, str):
        raise RecipeError([Fault(place, "extends", "must be the path of one recipe")])
    base_path = path.parent / os.path.expanduser(extends)
    line = (*seen, path)
    if os.path.realpath(base_path) in {os.path.realpath(each) for each in line}:
        turns = " -> ".join(each.name for each in (*line, base_path))
        raise RecipeError([Fault(place, "extends", f"goes round in a circle: {turns}")])
    try:
        base = _with_bases(base_path, line, max_bytes)
    except RecipeError as error:
        if error.faults[0].place == Place(str(base_path)):  # the file itself: say who asked for it
            first = error.faults[0]
            fault = Fault(place, "extends", f"{base_path} {first.problem}", first.found, first.allowed, first.nearest)
            raise RecipeError([fault]) from None
        raise
    _look_up_beside(base, path.parent)
    merge(base, document)
    base.places[()] = document.place(())
    base.file = document.file
    return base


def _set(document: Document, text: str) -> None:
    """Put ``key.path=value`` over what ``document`` says. Raises RecipeError with ``--set`` as the place."""
    key, equals, written = text.partition("=")
    place = Place(f"{SET} {text}")
    parts = re.findall(r"[^.\[\]]+|\[\d{1,6}\]", key)
    path: Path = tuple(int(part[1:-1]) if part.startswith("[") else part for part in parts)
    if not equals or not path or isinstance(path[0], int) or dotted(path) != key.strip():
        raise RecipeError(
            [Fault(place, "", "is not of the form key.path=value", allowed="train.epochs=1, for example")]
        )
    value, over = parse_value(written, place, path)
    if any(isinstance(part, int) for part in path):
        _set_in_list(document, path, value, place)
    else:
        for part in reversed(path):
            value = {part: value}
        over.values = value
        spell_out(over)
        _merge(document.values, over.values, (), document)
    for at, said in over.places.items():
        document.places.setdefault(at, said)  # what was only joined keeps its place
    document.written.update(over.written)
    document.env_names |= over.env_names


def _set_in_list(document: Document, path: Path, value: Any, place: Place) -> None:
    for end in range(1, len(path)):
        index, below = path[end], document.at(path[:end])
        if isinstance(index, int) and not (isinstance(below, list) and index < len(below)):
            there = f"the list has {len(below)}" if isinstance(below, list) else "there is no list"
            raise RecipeError([Fault(place, dotted(path[: end + 1]), f"there is no item {index} ({there})")])
        if isinstance(index, str) and not isinstance(below, dict):
            _put(document, path[:end], {})
    old = document.at(path)
    if isinstance(old, dict) and isinstance(value, dict):
        _merge(old, value, path, document)
    else:
        _put(document, path, value)


def _merge(old: dict[str, Any], new: dict[str, Any], path: Path, document: Document) -> None:
    for key, value in new.items():
        here = (*path, key)
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            _merge(old[key], value, here, document)
        else:
            _put(document, here, value)


def _put(document: Document, path: Path, value: Any) -> None:
    """``value`` at ``path``; nothing is known any more of the places and the spelling of what stood there."""
    deep = isinstance(document.at(path), dict | list)
    for table in (document.places, document.written):
        for inside in [each for each in table if each[: len(path)] == path] if deep else [path]:
            table.pop(inside, None)
    parent = document.at(path[:-1])
    parent[path[-1]] = value


def _look_up_beside(base: Document, folder: FilePath) -> None:
    """Relative paths of a base recipe in another folder, made absolute, so that they keep their meaning."""
    beside = FilePath(base.file).parent
    if os.path.realpath(beside) == os.path.realpath(folder):
        return
    for template in PATHS:
        listed = base.at(template[: template.index(-1)]) if -1 in template else None
        count = len(listed) if isinstance(listed, list) else 0
        for index in range(count) if -1 in template else (0,):
            path = tuple(index if part == -1 else part for part in template)
            at: Any = path[-1]
            parent, value = base.at(path[:-1]), base.at(path)
            if isinstance(value, str) and isinstance(parent, dict | list):
                there = (beside / os.path.expanduser(value)).absolute()
                # What may be the name of something elsewhere stays one, unless it is there.
                if os.path.exists(there) or not _may_be_elsewhere(path, value):
                    parent[at] = str(there)


def _may_be_elsewhere(path: Path, value: str) -> bool:
    """Whether ``value`` can be the name of something that is no file beside the recipe."""
    if path == ("data", "template"):
        return True
    if path == ("model", "name"):
        return not value.startswith(".")
    return path[0] == "data" and (bool(URL.match(value)) or is_hub_id(value))
