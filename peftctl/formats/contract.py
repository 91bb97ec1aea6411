"""What a format is: the meaning of one shape of row."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from peftctl.example import Example, RowFault


class Format(Protocol):
    """Turns a row into an example."""

    @property
    def name(self) -> str:
        """The word for it in a recipe."""

    @property
    def columns(self) -> str:
        """The columns it reads, as a person would write them down."""

    def matches(self, columns: frozenset[str], task: str) -> bool:
        """Whether rows with these columns can be of this format, for this task."""

    def example(self, row: Mapping[str, Any]) -> Example:
        """What the row means. Raises RowFault with the reason where it means nothing."""


def text_of(row: Mapping[str, Any], column: str) -> str:
    """The text in ``column``. Raises RowFault where it is absent or not text."""
    if column not in row:
        raise RowFault(f"no column {column!r} (columns: {', '.join(map(str, row)) or 'none'})")
    value = row[column]
    if not isinstance(value, str):
        raise RowFault(f"{column} is {type(value).__name__}, not text")
    return value
