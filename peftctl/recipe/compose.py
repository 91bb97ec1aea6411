"""The parts of a recipe as one document: the recipe it extends, the recipe, and what ``--set`` overrides.

Later parts win key by key; a list is replaced whole. Every value keeps the place it came from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path as FilePath
from typing import Any

from peftctl.errors import Fault, Place, RecipeError
from peftctl.nearest import nearest
from peftctl.recipe.nodes import Document, Path, dotted, parse, parse_value
from peftctl.recipe.spelling import spell_out

MAX_BYTES = 100_000
SET = "--set"

# Settings that name something to read. They are looked up beside the file that says them.
PATHS: tuple[Path, ...] = (("model", "name"), ("data", "train", -1, "path"), ("data", "eval", "path"))


def compose(path: FilePath, overrides: Sequence[str] = (), max_bytes: int = MAX_BYTES) -> Document:
    """The whole recipe in ``path``. Raises RecipeError with every fault of its parts' form."""
    document = _with_bases(path, (), max_bytes)
    faults: list[Fault] = []
    for override in overrides:
        try:
            merge(document, _override(override))
        except RecipeError as error:
            faults += error.faults
    if faults:
        raise RecipeError(faults)
    spell_out(document)
    return document


def read_text(path: FilePath, max_bytes: int = MAX_BYTES) -> str:
    """The text of a recipe file. Raises RecipeError where it is absent, too large or not UTF-8."""
    place = Place(str(path))
    try:
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
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")] if path.parent.is_dir() else [])
        problem = f"cannot be read: {error.strerror}"
        raise RecipeError([Fault(place, "", problem, nearest=str(path.with_name(near)) if near else "")]) from None


def merge(document: Document, over: Document) -> None:
    """Put what ``over`` says over what ``document`` says, in place."""
    _merge(document.values, over.values, (), document, over)
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
    base_path = path.parent / FilePath(extends).expanduser()
    line = (*seen, path)
    if base_path.resolve() in {each.resolve() for each in line}:
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


def _override(text: str) -> Document:
    """``key.path=value`` as a document of its own. Raises RecipeError with ``--set`` as the place."""
    key, equals, value = text.partition("=")
    place = Place(f"{SET} {text}")
    parts = re.findall(r"[^.\[\]]+|\[\d+\]", key)
    path: Path = tuple(int(part[1:-1]) if part.startswith("[") else part for part in parts)
    if not equals or not path or dotted(path) != key.strip():
        raise RecipeError(
            [Fault(place, "", "is not of the form key.path=value", allowed="train.epochs=1, for example")]
        )
    return parse_value(value, place, path)


def _merge(old: dict[str, Any], new: dict[str, Any], path: Path, document: Document, over: Document) -> None:
    for key, value in new.items():
        here = (*path, key)
        under = old.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            _merge(under, value, here, document, over)
            continue
        if isinstance(value, list) and isinstance(under, list) and over.file.startswith(SET) and _is_item(over, here):
            _merge_item(under, value, here, document, over)
            continue
        for table in (document.places, document.written):
            for inside in [each for each in table if each[: len(here)] == here]:
                del table[inside]
        old[key] = value


def _is_item(over: Document, path: Path) -> bool:
    """Whether ``--set`` names an item of the list at ``path`` rather than the list."""
    return any(
        len(each) > len(path) and each[: len(path)] == path and isinstance(each[len(path)], int) for each in over.places
    ) and (f"{dotted(path)}[" in over.file)


def _merge_item(old: list[Any], new: list[Any], path: Path, document: Document, over: Document) -> None:
    index = int(over.file.split(f"{dotted(path)}[", 1)[1].split("]", 1)[0])
    if index >= len(old):
        problem = f"there is no item {index} (the list has {len(old)})"
        raise RecipeError([Fault(Place(over.file), dotted((*path, index)), problem)])
    if isinstance(new[0], dict) and isinstance(old[index], dict):
        _merge(old[index], new[0], (*path, index), document, over)
    else:
        old[index] = new[0]


def _look_up_beside(base: Document, folder: FilePath) -> None:
    """Relative paths of a base recipe in another folder, made absolute, so that they keep their meaning."""
    beside = FilePath(base.file).parent
    if beside.resolve() == folder.resolve():
        return
    train = base.at(("data", "train"))
    count = len(train) if isinstance(train, list) else 0
    for template in PATHS:
        for index in range(count) if -1 in template else (0,):
            path = tuple(index if part == -1 else part for part in template)
            parent, value = base.at(path[:-1]), base.at(path)
            if isinstance(value, str) and isinstance(parent, dict):
                there = (beside / FilePath(value).expanduser()).absolute()
                if path != ("model", "name") or there.exists() or value.startswith("."):
                    parent[path[-1]] = str(there)
