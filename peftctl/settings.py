"""The base of every section of a recipe: a setting is declared once, with type, default, meaning and limits.

Help, documentation, JSON Schema, validation and error texts are derived from these declarations. A section
that may be written as one word names the setting the word stands for in ``shorthand``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen; unknown keys refused; no conversion between types (``"8"`` is not a number, ``1`` no boolean)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    shorthand: ClassVar[str] = ""


def sections_in(settings: type[Settings]) -> Iterator[tuple[str, type[Settings]]]:
    """Those settings of a section that are sections themselves, whether or not they may be left out."""
    for name, declared in settings.model_fields.items():
        kinds: tuple[Any, ...] = (declared.annotation, *get_args(declared.annotation))
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Settings):
                yield name, kind
