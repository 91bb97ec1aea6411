"""Everything a recipe asks to be measured on its held-out rows."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite
from typing import Any

from peftctl.data.collate import Collator
from peftctl.data.encode import Rows
from peftctl.evaluation import choices as by_choice
from peftctl.evaluation.loss import evaluate, summarise
from peftctl.evaluation.written import Writing
from peftctl.example import Example
from peftctl.recipe.schema import EvalSettings
from peftctl.tasks import KEPT


@dataclass(frozen=True)
class Measurement:
    """The held-out rows and how they are measured: with ``choices`` if any."""

    rows: Rows
    collate: Collator
    max_length: int
    choices: Sequence[str] = ()
    writing: Writing | None = None

    def check(self) -> None:
        """Raises DataError where the rows cannot be measured so, before anything is trained."""
        if self.writing:
            self.writing.check(self._examples, self.collate)
        if self.choices:
            self._asked  # noqa: B018 - made once, kept

    def written(self, model: Any) -> dict[str, Any]:
        """The figures of what the model writes, where that is wanted. Not with the fast paths, which are for rows."""
        return {"written": self.writing(model, self._examples, self.collate)} if self.writing else {}

    def __call__(self, model: Any) -> dict[str, Any]:
        """The task's metrics, None where not finite, and with choices the figures of the likeliest one."""
        if not self.choices:
            return self._plain(evaluate(model, self.rows.encoded, self.collate))
        asked = self._asked
        answers = [question.answer for question in asked]
        flat = [variant for question in asked for variant in question.variants]
        of_variants = evaluate(model, flat, self.collate)
        # Where a row's answer is all that it teaches, the row is one of its own variants and need not run again.
        right = [question.variants[question.answer] for question in asked]
        if len(right) == len(self.rows) and all(map(operator.eq, right, self.rows.encoded)):
            count = len(self.choices)
            of_rows = [of_variants[index * count + answer] for index, answer in enumerate(answers)]
        else:
            of_rows = evaluate(model, self.rows.encoded, self.collate)
        scores = by_choice.scores_of(of_variants, len(self.choices))
        return {
            **self._plain(of_rows),
            "likeliest": by_choice.classify(scores, answers, self.choices),
            "majority": by_choice.majority(answers, self.choices),
        }

    def of_base(self) -> Measurement:
        """The same for the model with its adapter off, which puts no tokens of its own before rows."""
        return replace(self, collate=replace(self.collate, layout=replace(self.collate.layout, virtual=0)))

    @cached_property
    def _asked(self) -> list[by_choice.Question]:
        return by_choice.questions(self.rows.sources, self.choices, self.collate, self.max_length)

    def _of_each(self) -> list[Example]:
        """What each of the rows is of."""
        examples = self.rows.read_again()
        return [examples[number].example for number in self.rows.of]

    @cached_property
    def _examples(self) -> list[Example]:
        return [sourced.example for sourced in self.rows.sources]

    def _plain(self, of_rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        task = self.collate.task
        metrics = dict(summarise(task, of_rows))
        if of_rows and KEPT in of_rows[0]:
            metrics |= task.judge([row[KEPT] for row in of_rows], self.rows.encoded, self._of_each)
        return {
            key: value if not isinstance(value, float) or isfinite(value) else None for key, value in metrics.items()
        }


def measured(settings: EvalSettings, rows: Rows, collate: Collator, max_length: int) -> Measurement:
    """The held-out rows as the recipe's section ``eval`` has them measured."""
    wanted = settings.generate
    writing = Writing(wanted.max_new_tokens, wanted.limit) if wanted else None
    return Measurement(rows, collate, max_length, settings.choices or (), writing)
