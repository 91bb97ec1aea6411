"""YAML to plain values, remembering where each stands and how it was written.

PyYAML's nodes carry line and column; its constructors do not, and they let a repeated key win silently and read
``1e-5`` as text. So the text is composed to nodes and the values are made here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from peftctl.errors import Fault, Place, RecipeError

Path = tuple[str | int, ...]

MAX_DEPTH = 32
MAX_VALUES = 50_000

_PREFIX = "tag:yaml.org,2002:"
_SCALARS = {f"{_PREFIX}{kind}" for kind in ("null", "bool", "int", "float", "str")}
_MERGE = f"{_PREFIX}merge"
_UNREADABLE = (ValueError, LookupError, ArithmeticError, yaml.YAMLError)
_NO_TEXT = re.compile(r"[\0\ud800-\udfff]")
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)\Z")
_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_OPEN, _CLOSE = "\ue000", "\ue001"
_MASKED = re.compile(rf"\${_OPEN}env:([A-Za-z_][A-Za-z0-9_]*){_CLOSE}")

# PyYAML's complaints in the words of someone who writes recipes.
_PLAINER = {
    "found character '\\t' that cannot start any token": "a tab stands where YAML takes only spaces",
    "expected a single document in the stream": "a second document begins here, and a recipe is one",
    "mapping values are not allowed here": "a second `key:` on one line, or text with `: ` that needs quotes",
    "could not find expected ':'": "a key without its colon",
}


class _Loader(yaml.SafeLoader):
    """SafeLoader that takes ``1e-5`` for the number it is (YAML 1.1 wants a dot) and a date for the text it is.

    ``${env:NAME}`` needs no quotes, not even in ``{path: ${env:NAME}}``: while the text is scanned, the braces of
    a reference are other signs, one for one, so that columns stay what they are.
    """

    def __init__(self, text: str) -> None:
        super().__init__(_ENV.sub(lambda found: f"${_OPEN}{found[0][2:-1]}{_CLOSE}", text))

    def compose_scalar_node(self, anchor: dict[Any, yaml.Node]) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        node.value = _MASKED.sub(lambda found: f"${{env:{found[1]}}}", node.value)
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != f"{_PREFIX}timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    f"{_PREFIX}float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
)
for _first in "-+0123456789":  # 010 is no octal number and 1:30 no number of seconds, as YAML 1.1 would have it
    _Loader.yaml_implicit_resolvers[_first] = [
        (tag, _WHOLE if tag == f"{_PREFIX}int" else regexp) for tag, regexp in _Loader.yaml_implicit_resolvers[_first]
    ]


@dataclass
class Document:
    """``values`` as plain Python; by key path, ``places`` of keys and items, and scalars as ``written``."""

    file: str
    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Path, Place] = field(default_factory=dict)
    written: dict[Path, str] = field(default_factory=dict)
    env_names: set[str] = field(default_factory=set)

    def place(self, path: Path) -> Place:
        """Where ``path`` stands, or the nearest thing above it that stands anywhere."""
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, Place(self.file, 1, 1))

    def at(self, path: Path) -> Any:
        """The value at ``path``, or None."""
        value: Any = self.values
        for part in path:
            if isinstance(value, dict) and isinstance(part, str):
                value = value.get(part)
            elif isinstance(value, list) and isinstance(part, int) and part < len(value):
                value = value[part]
            else:
                return None
        return value


def parse(text: str, file: str, environment: Mapping[str, str] = os.environ) -> Document:
    """The mapping that ``text`` holds, ``${env:NAME}`` read from ``environment``.

    Raises RecipeError with every fault of its form.
    """
    document = Document(file)
    with _yaml_faults(text, file):
        _check_depth(text, file)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                raise RecipeError([Fault(Place(file, 1, 1), "", "the recipe is empty")])
            if not isinstance(node, yaml.MappingNode):
                found = _kind(node)
                raise RecipeError([Fault(_place(node, file), "", "a recipe is a mapping of keys to settings", found)])
            reader = _Reader(loader, document, environment)
            document.places[()] = _place(node, file)
            document.values = reader.mapping(node, ())
        finally:
            loader.dispose()
    if reader.faults:
        raise RecipeError(reader.faults)
    return document


def parse_value(
    text: str, place: Place, path: Path, environment: Mapping[str, str] = os.environ
) -> tuple[Any, Document]:
    """A single value as YAML writes it, and a document without values that knows its spelling; all is at ``place``."""
    document = Document(place.file)
    with _all_at(place), _yaml_faults(text, place.file):
        _check_depth(text, place.file)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            reader = _Reader(loader, document, environment, everything_at=place)
            value = None if node is None else reader.value(node, path)
        finally:
            loader.dispose()
    if reader.faults:
        raise RecipeError(reader.faults)
    for end in range(1, len(path) + 1):
        document.places[path[:end]] = place
    return value, document


def reads_as_text(text: str) -> bool:
    """Whether ``text``, written plain, would be read as text."""
    loader = _Loader("")
    try:
        tag: str = loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    finally:
        loader.dispose()
    return tag == f"{_PREFIX}str"


class _Reader:
    """Makes values of nodes; what is wrong with them goes to ``faults``."""

    def __init__(
        self, loader: _Loader, document: Document, environment: Mapping[str, str], everything_at: Place | None = None
    ) -> None:
        self.faults: list[Fault] = []
        self._loader, self._document, self._environment = loader, document, environment
        self._everything_at = everything_at
        self._made = 0
        self._written: dict[int, set[int]] = {}
        self._sizes: dict[int, int] = {}

    def value(self, node: yaml.Node, path: Path) -> Any:
        self._made += 1
        if self._made > MAX_VALUES or len(path) > MAX_DEPTH:
            raise self._too_much(node, path)
        if isinstance(node, yaml.CollectionNode) and node.tag not in (f"{_PREFIX}map", f"{_PREFIX}seq"):
            return self._no_such_tag(node, path)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            items = []
            for index, item in enumerate(node.value):
                self._document.places[*path, index] = self._place(item)
                items.append(self.value(item, (*path, index)))
            return items
        assert isinstance(node, yaml.ScalarNode)
        return self._scalar(node, path)

    def mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        if self._size(node, path) > MAX_VALUES:
            raise self._too_much(node, path)
        written = self._written[id(node)]
        self._loader.flatten_mapping(node)  # puts what `<<` merges in before the keys written here, which win
        own: dict[str, yaml.Node] = {}
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            place = self._place(key_node)
            if key_node.tag != f"{_PREFIX}str":
                found = key_node.value if isinstance(key_node, yaml.ScalarNode) else _kind(key_node)
                self.faults.append(
                    Fault(place, dotted(path), "a key must be text", found, "text, in quotes if need be")
                )
                continue
            key = key_node.value
            if _NO_TEXT.search(key):
                self.faults.append(Fault(place, dotted(path), _no_text(key)))
                continue
            if id(key_node) in written:
                first = own.setdefault(key, key_node)
                if first is not key_node:  # a mapping that merges itself brings its own keys again
                    repeated = dotted((*path, key))
                    self.faults.append(Fault(place, repeated, "the key is repeated", also=self._place(first)))
                    continue
            self._document.places[*path, key] = place
            values[key] = self.value(value_node, (*path, key))
        return values

    def _size(self, node: yaml.MappingNode, path: Path, depth: int = 0) -> int:
        """How many keys ``node`` has once everything is merged in, and which are its own, before merging rewrites it.

        Merging copies: a few nested lists of merged mappings can be more keys than there is memory.
        """
        if depth > MAX_DEPTH:
            raise self._too_much(node, path)
        if id(node) not in self._sizes:
            self._sizes[id(node)] = 0  # a mapping that merges itself gains nothing
            self._written[id(node)] = {id(key) for key, _ in node.value}
            size = 0
            for key, value in node.value:
                if key.tag != _MERGE:
                    size += 1
                    continue
                for merged in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    size += self._size(merged, path, depth + 1) if isinstance(merged, yaml.MappingNode) else 0
            self._sizes[id(node)] = size
        return self._sizes[id(node)]

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        if node.tag not in _SCALARS:
            return self._no_such_tag(node, path)
        self._document.written[path] = node.value
        if node.tag == f"{_PREFIX}str" and "${" in node.value:
            return self._from_environment(node, path)
        return self._made_of(node, node, path)

    def _made_of(self, node: yaml.ScalarNode, written: yaml.ScalarNode, path: Path) -> Any:
        """The value of ``node``; what is wrong with it is told of ``written``."""
        if node.tag == f"{_PREFIX}str" and _NO_TEXT.search(node.value):
            self.faults.append(Fault(self._place(written), dotted(path), _no_text(node.value)))
            return None
        try:
            return self._loader.construct_object(node)
        except _UNREADABLE:
            kind = {"int": "a whole number", "float": "a number"}.get(
                node.tag.removeprefix(_PREFIX), "what its tag says"
            )
            self.faults.append(Fault(self._place(written), dotted(path), f"cannot be read as {kind}", written.value))
            return None

    def _from_environment(self, node: yaml.ScalarNode, path: Path) -> Any:
        """The text with ``${env:NAME}`` filled in; where it is nothing else, and plain, of the type it looks like."""
        names = _ENV.findall(node.value)
        unset = [name for name in names if name not in self._environment]
        if "${" in _ENV.sub("", node.value):
            allowed = "${env:NAME}, the value of an environment variable"
            self.faults.append(Fault(self._place(node), dotted(path), "no such reference", node.value, allowed))
        for name in unset:
            self.faults.append(Fault(self._place(node), dotted(path), f"the environment variable {name} is not set"))
        if unset:
            return None
        self._document.env_names |= set(names)
        text = _ENV.sub(lambda match: self._environment[match[1]], node.value)
        if node.style is None and _ENV.fullmatch(node.value):
            tag = self._loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
            if tag in _SCALARS:
                return self._made_of(yaml.ScalarNode(tag, text), node, path)
        return self._made_of(yaml.ScalarNode(f"{_PREFIX}str", text), node, path)

    def _no_such_tag(self, node: yaml.Node, path: Path) -> None:
        tag = node.tag.replace(_PREFIX, "!!")
        self.faults.append(Fault(self._place(node), dotted(path), "this YAML tag means nothing here", tag))

    def _too_much(self, node: yaml.Node, path: Path) -> RecipeError:
        problem = f"anchors and aliases make it larger than {MAX_VALUES:,} values or deeper than {MAX_DEPTH} levels"
        return RecipeError([Fault(self._place(node), dotted(path[:4]), problem)])

    def _place(self, node: yaml.Node) -> Place:
        return self._everything_at or _place(node, self._document.file)


def dotted(path: Path) -> str:
    """A key path as a person writes it: ``data.train[0].path``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


@contextmanager
def _all_at(place: Place) -> Iterator[None]:
    """Faults moved to ``place``: an option has neither lines nor columns."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError([replace(fault, place=place) for fault in error.faults]) from None


@contextmanager
def _yaml_faults(text: str, file: str) -> Iterator[None]:
    """PyYAML's exceptions as RecipeErrors with a place."""
    try:
        yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)
        said = " ".join(filter(None, (error.context, error.problem)))
        plain = next((words for sign, words in _PLAINER.items() if sign in said), said)
        raise RecipeError([Fault(place, "", f"not YAML: {plain}")]) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        problem = f"holds the character {chr(error.character)!a}, which YAML does not allow"
        raise RecipeError([Fault(Place(file, line), "", problem)]) from None


def _check_depth(text: str, file: str) -> None:
    """Refuse deep nesting by its events: composing it would overflow the stack first."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            mark = event.start_mark
            place = Place(file, mark.line + 1, mark.column + 1) if mark else Place(file)
            raise RecipeError([Fault(place, "", f"nested deeper than {MAX_DEPTH} levels")])


def _place(node: yaml.Node, file: str) -> Place:
    return Place(file, node.start_mark.line + 1, node.start_mark.column + 1)


def _no_text(text: str) -> str:
    found = _NO_TEXT.search(text)
    assert found is not None
    return f"holds the character {found[0]!a}, which no setting can"


def _kind(node: yaml.Node) -> str:
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
