"""Which rows a source gives: a Jinja expression over a row's columns, in Jinja's sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from peftctl.example import RowFault

KIND = "filter fails"


@lru_cache(maxsize=64)
def compiled(written: str) -> Callable[[Mapping[str, Any]], bool]:
    """What says whether a row is taken. Raises ValueError where ``written`` is no expression.

    What comes back raises RowFault where the expression fails on a row, as on one without a column that it names.
    """
    from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined)
    # What draws lots would take other rows each time; the other globals would stand for columns that are not there.
    del environment.filters["random"]
    environment.globals = {"range": environment.globals["range"]}
    try:
        expression = environment.compile_expression(written, undefined_to_none=False)
    except TemplateSyntaxError as error:
        raise ValueError(error.message) from None

    def taken(row: Mapping[str, Any]) -> bool:
        try:
            return bool(expression({str(name): value for name, value in row.items()}))
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise RowFault(f"filter: {error}", KIND) from None

    return taken
