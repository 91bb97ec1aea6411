"""Rows to compare by: short and long, one and several, padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftctl.data.collate import plain_layout
from peftctl.merge.compare import PROMPTS
from peftctl.model.load import attends_to, forward_takes
from peftctl.onnx.contract import Case
from peftctl.tasks import padded
from peftctl.text.tokens import Encoded

SHAPES = ((1, 4), (3, 24), (2, 160))  # rows, and tokens of the longest
TRACED = (2, 10)  # what is traced with: no axis as long as another, none of length 0 or 1, which would be taken to stay


def cases(model: Any, tokenizer: Any) -> list[Case]:
    """One of each shape, as far as the model attends."""
    longest = attends_to(model.config, tokenizer)
    return [case(model, tokenizer, rows, min(length, longest)) for rows, length in SHAPES]


def traced(model: Any, tokenizer: Any) -> Case:
    """Rows without padding to trace a graph with."""
    return case(model, tokenizer, *TRACED, shorter=False)


def case(model: Any, tokenizer: Any, rows: int, length: int, *, shorter: bool = True) -> Case:
    """Texts of at most ``length`` tokens, each ``shorter`` than the one before by as much, with two parts where the
    model tells these apart."""
    import numpy as np

    layout = plain_layout(tokenizer)
    types = layout.types and forward_takes(model, "token_type_ids")
    step = length // rows if shorter else 0
    texts = [_text(tokenizer, at, length - at * step, parts=types) for at in range(rows)]
    made = padded.inputs(texts, layout)
    names = ("input_ids", "attention_mask", *(("token_type_ids",) if types else ()))
    return Case({name: made[name].astype(np.int64) for name in names})


def _text(tokenizer: Any, which: int, length: int, *, parts: bool) -> Encoded:
    """Exactly so many tokens, with what the tokenizer puts around a text."""
    own: Sequence[str] = [*PROMPTS[which % len(PROMPTS) :], *PROMPTS] * (1 + length // 40)
    second = [" ".join(own[1:])] if parts else None
    (encoding,) = padded.encoded(tokenizer, [own[0] if parts else " ".join(own)], second)
    ids = tuple(encoding.ids)
    row = Encoded(ids, (0.0,) * len(ids), (), padded.parts(encoding))
    (fitting,) = padded.fit(row, length, "truncate_end", tokenizer)
    return fitting
