"""The tree of errors: exit codes and text forms."""

from __future__ import annotations

import pytest

from peftctl import errors
from peftctl.errors import Fault, PeftctlError, Place, RecipeError


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.UsageError, 2),
        (errors.DataError, 3),
        (errors.MachineError, 4),
        (errors.VerificationError, 5),
        (errors.DivergedError, 5),
        (PeftctlError, 1),
    ],
)
def test_every_error_has_its_exit_code_and_its_text(kind: type[PeftctlError], code: int) -> None:
    assert kind.exit_code == code
    assert issubclass(kind, PeftctlError)
    assert str(kind("m")) == "m"
    assert str(kind("m", "do this")) == "m\nhint: do this"


def test_a_recipe_error_exits_with_2() -> None:
    assert RecipeError([]).exit_code == 2


@pytest.mark.parametrize(
    ("place", "text"),
    [
        (Place("r.yaml", 3, 5), "r.yaml:3:5"),
        (Place("rows.jsonl", 7), "rows.jsonl:7"),
        (Place("--output"), "--output"),
    ],
)
def test_a_place_leaves_out_what_it_does_not_know(place: Place, text: str) -> None:
    assert str(place) == text


def test_a_fault_says_all_that_it_knows_in_order() -> None:
    here, there = Place("r.yaml", 2, 1), Place("r.yaml", 1, 4)
    assert str(Fault(here, "a.b", "is wrong")) == "r.yaml:2:1: a.b: is wrong"
    assert str(Fault(here, "", "is empty")) == "r.yaml:2:1: is empty"
    assert str(Fault(here, "a", "is wrong", "3", "one of x, y", "x", there)) == (
        "r.yaml:2:1: a: is wrong (found 3) (see also r.yaml:1:4); allowed: one of x, y; did you mean x?"
    )


def test_faults_are_sorted_by_place_with_lines_as_numbers() -> None:
    places = [Place("r", 10, 1), Place("r", 9, 2), Place("r", 9, 10), Place("r", 1, 1)]
    faults = [Fault(place, "k", "p") for place in places] + [Fault(Place("r", 1, 1), "a", "p")]
    error = RecipeError(faults, "look")
    assert [(fault.place.line, fault.place.column, fault.key) for fault in error.faults] == [
        (1, 1, "a"),
        (1, 1, "k"),
        (9, 2, "k"),
        (9, 10, "k"),
        (10, 1, "k"),
    ]
    assert str(error) == "r:1:1: a: p\nr:1:1: k: p\nr:9:2: k: p\nr:9:10: k: p\nr:10:1: k: p\nhint: look"
