"""Values out of strangers' JSON, as the kind that they have to be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def number(value: Any) -> float | None:
    """A number as float; None for what is none."""
    if isinstance(value, float):
        return value
    return float(value) if type(value) is int and abs(value) < 2**63 else None


def count(value: Any) -> int | None:
    """A whole number from 0 on; None for what is none."""
    return value if type(value) is int and 0 <= value < 2**63 else None


def word(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping; an empty one for what is none."""
    return value if isinstance(value, Mapping) else {}
