"""A recipe as YAML that loads to an equal recipe."""

from __future__ import annotations

from typing import Any

import yaml

from peftctl.recipe.schema import SECTIONS, Recipe
from peftctl.settings import Settings


def dump(recipe: Recipe, comment: str = "", *, full: bool = False) -> str:
    """YAML in the schema's order: what differs from the defaults, or with ``full`` every setting that has a value."""
    values = {name: _plain(getattr(recipe, name), full) for name in SECTIONS}
    document: dict[str, Any] = {name: value for name, value in values.items() if value}
    document["output"] = recipe.output
    text = yaml.dump(document, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return "".join(f"# {line}\n" for line in comment.splitlines()) + text


def _plain(settings: Settings, full: bool) -> dict[str, Any]:
    values: dict[str, Any] = settings.model_dump(mode="json", exclude_defaults=not full, exclude_none=full)
    # The shorthand setting is written even at its default: a method without its name is none.
    named = getattr(settings, settings.shorthand, None) if settings.shorthand else None
    return {settings.shorthand: named, **values} if named is not None else values


class _Dumper(yaml.SafeDumper):
    """SafeDumper without anchors, which a person reading a resolved recipe would have to resolve again."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
