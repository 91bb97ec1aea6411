"""The base of every section of a recipe: a setting is declared once, with type, default, meaning and limits.

Help, documentation, JSON Schema, validation and error texts are derived from these declarations. A section
that may be written as one word names the setting the word stands for in ``shorthand``.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Frozen; unknown keys refused; no conversion between types (``"8"`` is not a number, ``1`` no boolean)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    shorthand: ClassVar[str] = ""
