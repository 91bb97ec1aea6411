"""Everything a recipe asks to be measured on its held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from peftctl.data.collate import Collator
from peftctl.data.encode import Rows
from peftctl.evaluation import choices as by_choice
from peftctl.evaluation.loss import evaluate


@dataclass(frozen=True)
class Measurement:
    """The held-out rows and how they are measured: at most ``tokens`` tokens at once, with ``choices`` if any."""

    rows: Rows
    collate: Collator
    tokens: int
    max_length: int
    choices: Sequence[str] = ()

    def __call__(self, model: Any) -> dict[str, Any]:
        """The task's metrics, None where not finite, and with choices the figures of the likeliest one."""
        plain = evaluate(model, self.rows, self.collate, self.tokens)
        metrics: dict[str, Any] = {key: value if isfinite(value) else None for key, value in plain.items()}
        if self.choices:
            asked = by_choice.questions(self.rows.sources, self.choices, self.collate, self.max_length)
            answers = [question.answer for question in asked]
            scores = by_choice.score(model, asked, self.collate, self.tokens)
            metrics["likeliest"] = by_choice.classify(scores, answers, self.choices)
            metrics["majority"] = by_choice.majority(answers, self.choices)
        return metrics
