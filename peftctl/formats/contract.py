"""What a format is: the meaning of one shape of row."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol

from peftctl.example import Example, RowFault

WRONG_COLUMNS = "wrong columns"
WRONG_TYPE = "wrong type"
SAYS_NOTHING = "says nothing"
MOST = sys.float_info.max  # whole numbers in JSON may be larger than any float


class Format(Protocol):
    """Turns a row into an example."""

    @property
    def name(self) -> str:
        """The word for it in a recipe."""

    @property
    def columns(self) -> str:
        """The columns it reads, as a person would write them down."""

    @property
    def reads(self) -> tuple[str, ...]:
        """The names of all columns it looks at: what a recipe's ``columns`` may map."""

    @property
    def makes(self) -> tuple[type[Example], ...]:
        """The kinds of example that its rows become."""

    def matches(self, columns: frozenset[str]) -> bool:
        """Whether rows with these columns can be of this format."""

    def example(self, row: Mapping[str, Any]) -> Example:
        """What the row means. Raises RowFault with the reason where it means nothing."""


def text_of(row: Mapping[str, Any], column: str, *, empty: bool = True) -> str:
    """The text in ``column``. Raises RowFault where it is absent, not text, or blank though ``empty`` is false."""
    value = value_of(row, column)
    if not isinstance(value, str):
        raise RowFault(f"{column} is {kind_of(value)}, not text", WRONG_TYPE)
    if not empty and not value.strip():
        raise RowFault(f"{column} says nothing", SAYS_NOTHING)
    return value


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """What stands in ``column``. Raises RowFault where it is absent."""
    if column not in row:
        raise RowFault(f"no column {column!r} (columns: {', '.join(map(str, row)) or 'none'})", WRONG_COLUMNS)
    return row[column]


def kind_of(value: Any) -> str:
    """The kind of a value in the words of JSON."""
    kinds = {"NoneType": "null", "dict": "an object", "list": "a list", "str": "text", "bool": "true or false"}
    return kinds.get(type(value).__name__, "a number" if isinstance(value, int | float) else type(value).__name__)
