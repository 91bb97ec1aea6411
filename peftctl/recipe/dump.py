"""A recipe as YAML that loads to an equal recipe; a resolved one with who decided each value beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from peftctl.recipe.nodes import Path, dotted, reads_as_text
from peftctl.recipe.schema import SECTIONS, Recipe
from peftctl.settings import Settings


def dump(recipe: Recipe) -> str:
    """YAML in the schema's order, of what differs from the defaults."""
    return _yaml(_values(recipe, full=False))


def dump_resolved(recipe: Recipe, comment: str) -> str:
    """YAML of every setting that has a value, ``comment`` above it, and beside each value who decided it."""
    lines = _yaml(_values(recipe, full=True)).splitlines()
    for number, path in _leaves("\n".join(lines)):
        lines[number] += f"  # {origin(recipe, path)}"
    return "".join(f"# {line}\n" for line in comment.splitlines()) + "\n".join(lines) + "\n"


def origin(recipe: Recipe, path: Path) -> str:
    """Who decided the value at ``path``: what stands nearest above it and was written, or the default."""
    for end in range(len(path), 0, -1):
        if found := recipe.origins.get(dotted(path[:end])):
            return found
        # A section that was written says nothing of the settings it leaves out.
        if end > 1 and isinstance(path[end - 1], str):
            break
    return "default"


def values(recipe: Recipe) -> dict[str, Any]:
    """Every setting that has a value, as plain values by section; secrets as the references they were written as."""
    return _values(recipe, full=True)


def _values(recipe: Recipe, *, full: bool) -> dict[str, Any]:
    sections = {name: _plain(getattr(recipe, name), full) for name in SECTIONS}
    values: dict[str, Any] = {name: section for name, section in sections.items() if section}
    public: dict[str, Any] = _without_secrets({**values, "output": recipe.output}, recipe.secrets)
    return public


def _plain(settings: Settings, full: bool) -> dict[str, Any]:
    values: dict[str, Any] = settings.model_dump(mode="json", exclude_defaults=not full, exclude_none=full)
    # The shorthand setting is written even at its default: a method without its name is none.
    named = getattr(settings, settings.shorthand, None) if settings.shorthand else None
    return {settings.shorthand: named, **values} if named is not None else values


def _without_secrets(value: Any, secrets: Mapping[str, str]) -> Any:
    """Values from secret-sounding variables as the references they were written as."""
    if isinstance(value, dict):
        return {key: _without_secrets(item, secrets) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_secrets(item, secrets) for item in value]
    if isinstance(value, str) and secrets:
        # All at once, so that none is looked for in another's reference; longest first, so that no end is left.
        any_secret = "|".join(re.escape(secret) for secret in sorted(secrets, key=len, reverse=True))
        return re.sub(any_secret, lambda match: secrets[match[0]], value)
    return value


def _yaml(values: dict[str, Any]) -> str:
    text: str = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9)
    return text


def _leaves(text: str) -> Iterator[tuple[int, Path]]:
    """The line (from 0) and the key path of every single value and of every list of single values."""

    def walk(node: yaml.Node, path: Path) -> Iterator[tuple[int, Path]]:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*path, key.value)
                plain = isinstance(value, yaml.SequenceNode) and all(
                    isinstance(v, yaml.ScalarNode) for v in value.value
                )
                if isinstance(value, yaml.ScalarNode) or plain:
                    yield key.start_mark.line, here
                else:
                    yield from walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                yield from walk(item, (*path, index))

    node = yaml.compose(text, yaml.SafeLoader)
    assert node is not None
    yield from walk(node, ())


class _Dumper(yaml.SafeDumper):
    """SafeDumper without anchors, which a person reading a resolved recipe would have to resolve again."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        """In double quotes: text that would come back as something else, references, and more than one line.

        Single quotes would spread lines over lines, and the comment beside the first would become part of the text.
        """
        odd = not reads_as_text(text) or "${" in text or any(sign in text for sign in "\n\x85\u2028\u2029")
        return self.represent_scalar("tag:yaml.org,2002:str", text, style='"' if odd else None)


_Dumper.add_representer(str, _Dumper.represent_text)
