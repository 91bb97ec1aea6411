"""What is compared is judged by rounding: larger differences, numbers that are none, and other texts are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from peftctl.errors import VerificationError
from peftctl.onnx import check
from peftctl.onnx.contract import Case

MASK = np.array([[1, 1, 1], [1, 0, 0]])
ROWS = Case({"input_ids": MASK, "attention_mask": MASK})


def said(*changes: tuple[tuple[int, ...], float], scale: float = 1.0) -> dict[str, Any]:
    values = np.full((2, 3, 4), scale, np.float64)
    for at, change in changes:
        values[at] += change
    return {"logits": values}


def test_rounding_passes_and_grows_with_the_scale() -> None:
    assert check._compared(ROWS, said(), said(((0, 1, 2), 9e-5)), ()) == pytest.approx(9e-5)
    assert check._compared(ROWS, said(scale=50), said(((0, 1, 2), 4e-3), scale=50), ()) == pytest.approx(8e-5)


@pytest.mark.parametrize("change", [1.2e-4, np.nan, np.inf])
def test_more_than_rounding_is_refused_with_its_rows(change: float) -> None:
    with pytest.raises(VerificationError, match=r"logits of rows of 2×3 differ from torch's by"):
        check._compared(ROWS, said(), said(((0, 1, 2), change)), ())


def test_padding_counts_where_it_is_no_token() -> None:
    other = said(((1, 2, 0), 1.0))
    assert check._compared(ROWS, said(), other, ("logits",)) == 0
    with pytest.raises(VerificationError):
        check._compared(ROWS, said(), other, ())


def test_another_shape_is_refused() -> None:
    with pytest.raises(VerificationError, match=r"logits is of shape \[2, 2, 4\] in the file, of \[2, 3, 4\] in torch"):
        check._compared(ROWS, said(), {"logits": np.ones((2, 2, 4))}, ())


class Writes:
    """A form whose files write what they are told."""

    def __init__(self, *written: int) -> None:
        self.written = list(written)

    def greedy(self, *_: Any) -> list[int]:
        return self.written


def text(*tied: int) -> check.Text:
    """1, 2, 3 was written, each the likeliest, to within rounding those in ``tied``."""
    logits = np.zeros((3, 6), np.float32)
    logits[[0, 1, 2], [1, 2, 3]] = 1.0
    logits[:, list(tied)] = 1.0 - 5e-5
    return check.Text([7], 0, [], [1, 2, 3], logits)


def judged(form: Any, one: check.Text) -> dict[str, int]:
    return check._written(form, None, [one])  # type: ignore[arg-type]  # no file is read


def test_the_same_text_passes() -> None:
    assert judged(Writes(1, 2, 3), text()) == {"texts": 1, "tokens": 3}


def test_of_two_tokens_as_likely_either_is_right() -> None:
    assert judged(Writes(1, 5, 0), text(5)) == {"texts": 1, "tokens": 1, "ties": 1}


@pytest.mark.parametrize(("written", "at"), [((1, 4, 3), 2), ((1, 2), 3), ((1, 2, 3, 0), 4)])
def test_another_text_or_another_end_is_refused(written: tuple[int, ...], at: int) -> None:
    with pytest.raises(VerificationError, match=rf"from token {at} on"):
        judged(Writes(*written), text(5))
