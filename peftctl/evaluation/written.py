"""What a model writes to held-out rows, against what they have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peftctl.data.collate import Collator
from peftctl.errors import DataError
from peftctl.example import Example
from peftctl.generate import generate_all
from peftctl.model.load import attends_to


@dataclass(frozen=True)
class Writing:
    """At most ``max_new_tokens`` a row, in answer to the first ``limit`` rows, all if None."""

    max_new_tokens: int
    limit: int | None = None

    def check(self, examples: Sequence[Example], collate: Collator) -> None:
        """Raises DataError where no row asks anything."""
        if not self._asked(examples[:1], collate) and not self._asked(examples, collate):
            raise DataError("eval.generate: no held-out row has something before what is learned, to be answered")

    def __call__(self, model: Any, examples: Sequence[Example], collate: Collator) -> dict[str, float]:
        """The task's metrics of what is written, the likeliest token each time, and how many ``rows`` were answered.

        Prompts of one length are answered together: nothing is padded, so a row's text does not depend on others.
        """
        asked = self._asked(examples, collate)
        of_length: dict[int, list[int]] = defaultdict(list)
        for number, (ids, _) in enumerate(asked):
            of_length[len(ids)].append(number)
        written = [""] * len(asked)
        able = attends_to(model.config, collate.tokenizer) - collate.layout.virtual
        for length, numbers in sorted(of_length.items()):
            room = able if model.config.is_encoder_decoder else able - length
            new = min(self.max_new_tokens, max(room, 1))  # a row has an answer, so there is room for one token at least
            most = max(1, collate.tokens // (length + new))
            for start in range(0, len(numbers), most):
                some = numbers[start : start + most]
                answers = generate_all(model, collate.tokenizer, [asked[at][0] for at in some], new)
                for at, answer in zip(some, answers, strict=True):
                    written[at] = answer
        pairs = list(zip(written, (right for _, right in asked), strict=True))
        return {"rows": len(pairs), **collate.task.written(pairs)}

    def _asked(self, examples: Sequence[Example], collate: Collator) -> list[tuple[list[int], str]]:
        found = (collate.task.asked(example, collate.tokenizer) for example in examples[: self.limit])
        return [each for each in found if each]
