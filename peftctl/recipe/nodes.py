"""YAML to plain values, remembering where each stands.

PyYAML's nodes carry line and column; its constructors do not, and they let a repeated key win silently and read
``1e-5`` as text. So the text is composed to nodes and the values are made here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from peftctl.errors import Fault, Place, RecipeError

Path = tuple[str | int, ...]

_SCALARS = {
    "tag:yaml.org,2002:null",
    "tag:yaml.org,2002:bool",
    "tag:yaml.org,2002:int",
    "tag:yaml.org,2002:float",
    "tag:yaml.org,2002:str",
}


class _Loader(yaml.SafeLoader):
    """SafeLoader that takes ``1e-5`` for the number it is (YAML 1.1 wants a dot) and a date for the text it is."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)


@dataclass
class Document:
    """``values`` as plain Python, and the ``places`` of each key path: of the key, or of an item of a list."""

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, Place] = field(default_factory=dict)

    def place(self, path: Path) -> Place:
        """Where ``path`` stands, or the nearest thing above it that stands anywhere."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place(self.file, 1, 1))


def parse(text: str, file: str) -> Document:
    """The mapping that ``text`` holds. Raises RecipeError with every fault of its form."""
    document = Document(file)
    faults: list[Fault] = []
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            raise RecipeError([Fault(Place(file, 1, 1), "", "the recipe is empty")])
        document.places[()] = _place(node, file)
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError([Fault(_place(node, file), "", "a recipe is a mapping of keys to settings", _kind(node))])
        document.values = _value(loader, node, (), document, faults)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise RecipeError([Fault(place, "", f"not YAML: {problem}")]) from None
    except yaml.YAMLError as error:
        raise RecipeError([Fault(Place(file), "", f"not YAML: {str(error).splitlines()[0]}")]) from None
    finally:
        loader.dispose()
    if faults:
        raise RecipeError(faults)
    return document


def _value(loader: _Loader, node: yaml.Node, path: Path, document: Document, faults: list[Fault]) -> Any:
    if isinstance(node, yaml.MappingNode):
        return _mapping(loader, node, path, document, faults)
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            document.places[*path, index] = _place(item, document.file)
            items.append(_value(loader, item, (*path, index), document, faults))
        return items
    if node.tag not in _SCALARS:
        faults.append(Fault(_place(node, document.file), dotted(path), f"the tag {node.tag} is not known here"))
        return None
    try:
        return loader.construct_object(node)
    except (ValueError, yaml.YAMLError):
        faults.append(Fault(_place(node, document.file), dotted(path), f"cannot be read as {_kind(node)}"))
        return None


def _mapping(
    loader: _Loader, node: yaml.MappingNode, path: Path, document: Document, faults: list[Fault]
) -> dict[str, Any]:
    written = {id(key) for key, _ in node.value}
    loader.flatten_mapping(node)  # puts what `<<` merges in before the keys written here, which win
    own: dict[str, Place] = {}
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        place = _place(key_node, document.file)
        if key_node.tag != "tag:yaml.org,2002:str":
            found = key_node.value if isinstance(key_node, yaml.ScalarNode) else _kind(key_node)
            faults.append(Fault(place, dotted(path), "a key must be text", found, allowed="text, in quotes if need be"))
            continue
        key = key_node.value
        if id(key_node) in written:
            if key in own:
                faults.append(Fault(place, dotted((*path, key)), "the key is repeated", also=own[key]))
                continue
            own[key] = place
        document.places[*path, key] = place
        values[key] = _value(loader, value_node, (*path, key), document, faults)
    return values


def dotted(path: Path) -> str:
    """A key path as a person writes it: ``data.train[0].path``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _place(node: yaml.Node, file: str) -> Place:
    return Place(file, node.start_mark.line + 1, node.start_mark.column + 1)


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
