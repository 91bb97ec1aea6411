"""Filters: Jinja expressions over a row's columns, in a sandbox, whose failure is the row's fault."""

from __future__ import annotations

from typing import Any

import pytest

from peftctl.example import RowFault
from peftctl.recipe.filters import compiled

# A column may have the name of a parameter of Python's.
ROW = {"language": "en", "score": 3, "messages": [{"role": "user"}], "self": "mine", "tags": None}


@pytest.mark.parametrize(
    ("written", "taken"),
    [
        ("language == 'en'", True),
        ("language != 'en'", False),
        ("score > 2 and messages | length == 1", True),
        ("messages[0].role == 'user'", True),
        ("messages | length in range(1, 3)", True),
        ("tags", False),
        ("tags is none", True),
        ("missing is defined", False),
        ("score", True),
        ("0", False),
    ],
)
def test_a_row_is_taken_where_the_expression_is_true(written: str, taken: bool) -> None:
    assert compiled(written)(ROW) is taken


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("laguage == 'en'", "filter: 'laguage' is undefined"),
        ("laguage", "filter: 'laguage' is undefined"),
        ("dict == 'x'", "filter: 'dict' is undefined"),  # a name of Jinja's own, and of no column
        ("lipsum(1)", "filter: 'lipsum' is undefined"),
        ("messages[0].rol == 'user'", "filter: 'dict object' has no attribute 'rol'"),
        ("messages[7].role == 'user'", "filter: "),
        ("score < 'x'", "filter: '<' not supported"),
        ("score | length", "filter: object of type 'int' has no len()"),
        ("1 / (score - 3) > 0", "filter: division by zero"),
        ("language | dictsort", "filter: "),
        ("language.__class__.__mro__", "filter: access to attribute '__class__'"),
        ("messages.append(3)", "filter: access to attribute 'append'"),
    ],
)
def test_an_expression_that_fails_is_the_fault_of_its_row(written: str, reason: str) -> None:
    with pytest.raises(RowFault) as error:
        compiled(written)(ROW)
    assert str(error.value).startswith(reason)
    assert error.value.kind == "filter fails"


@pytest.mark.parametrize(
    "written", ["language ==", "{{ language }}", "a b", "x | nosuchfilter", "'", "[0, 1] | random"]
)
def test_what_is_no_expression_is_refused_at_once(written: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as error:
        compiled(written)
    assert not isinstance(error.value, RowFault)


def test_columns_need_not_have_names_of_text() -> None:
    row: dict[Any, Any] = {3: "x", "a": 1}
    assert compiled("a == 1")(row)
