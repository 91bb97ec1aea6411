"""Tagging: one of some tags for every word. The first token of a word stands for it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from peftctl.example import Example, RowFault, Tagged
from peftctl.objectives.class_cross_entropy import OBJECTIVE as CLASSES
from peftctl.tasks import labels as names
from peftctl.tasks import padded
from peftctl.tasks.contract import KEPT, Batch, EncodedExample, Layout
from peftctl.tasks.defaults import Defaults
from peftctl.tasks.scores import classified, entities
from peftctl.text.tokens import IGNORED, Encoded

# Tags of spans of words: B- where one begins, I- within it, O outside.
SPANS = ("B-", "I-")


@dataclass(frozen=True)
class TokenClassification(Defaults):
    name: str = "token_cls"
    peft_type: str = "TOKEN_CLS"
    pipeline: str = "token-classification"
    accepts: tuple[type[Example], ...] = (Tagged,)
    objective: str = "class_cross_entropy"
    head: bool = True
    uses: tuple[str, ...] = ("labels",)
    ways: tuple[str, ...] = ("drop", "truncate_start", "truncate_end")
    labels: tuple[str, ...] = ()

    @property
    def arguments(self) -> str:
        return names.told(self.labels)

    def of(self, settings: Any) -> TokenClassification:
        return replace(self, labels=settings.labels or ())

    def asks_rows(self, settings: Any) -> tuple[str, ...]:
        return () if settings.labels else ("labels",)

    def decide(self, settings: Any, examples: Sequence[Example]) -> Mapping[str, Any]:
        tags = (tag for example in examples if isinstance(example, Tagged) for tag in example.tags)
        return {"labels": settings.labels or names.found(tags, "tag")}

    def probe(self, text: str) -> Tagged:
        words = tuple(text.split())
        return Tagged(words, (self.labels[0],) * len(words))

    def check(self, examples: Sequence[Example]) -> list[str]:
        seen = {tag for example in examples if isinstance(example, Tagged) for tag in example.tags}
        empty = [label for label in self.labels if label not in seen]
        return [f"task.labels: no training row has {', '.join(empty[:5])}" + " ..." * (len(empty) > 5)] if empty else []

    def model_class(self, config: Any = None) -> Any:
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    def configure(self, config: Any) -> None:
        config.id2label = dict(enumerate(self.labels))
        config.label2id = {label: number for number, label in enumerate(self.labels)}

    def encode(self, examples: Sequence[Example], tokenizer: Any, learn: str = "assistant") -> list[EncodedExample]:
        rows = [example for example in examples if isinstance(example, Tagged)]
        texts = [" ".join(row.words) for row in rows]
        made: list[EncodedExample] = []
        for row, encoding in zip(rows, padded.encoded(tokenizer, texts), strict=True):
            try:
                ids = tuple(encoding.ids)
                made.append([Encoded(ids, (0.0,) * len(ids), self._numbers(row, encoding))])
            except RowFault as fault:
                made.append(fault)
        return made

    def _numbers(self, row: Tagged, encoding: Any) -> tuple[float, ...]:
        """The tag of each word at the word's first token, IGNORED elsewhere. The words were joined by single spaces."""
        ends = list(accumulate(len(word) + 1 for word in row.words))
        tags = [names.number(tag, self.labels, "tag") for tag in row.tags]
        numbers, last = [float(IGNORED)] * len(encoding.ids), -1
        special = encoding.special_tokens_mask
        for at, (start, end) in enumerate(encoding.offsets):
            if special[at] or end == start:
                continue
            word = bisect_right(ends, end - 1)  # some tokens begin with the space before the word
            if word > last:
                if word > last + 1:
                    raise RowFault(f"the tokenizer makes nothing of the word {row.words[last + 1]!r}")
                numbers[at], last = float(tags[word]), word
        if last + 1 < len(row.words):
            raise RowFault(f"the tokenizer makes nothing of the word {row.words[last + 1]!r}")
        return tuple(numbers)

    def learned(self, row: Encoded, tokenizer: Any) -> str:
        return "tags " + " ".join(self.labels[int(label)] for label in row.labels if label != IGNORED)

    def fit(self, row: Encoded, longest: int, how: str, tokenizer: Any) -> list[Encoded]:
        return padded.fit(row, longest, how, tokenizer)

    def collate(self, rows: Sequence[Encoded], layout: Layout) -> Batch:
        """``inputs``; ``labels`` [rows, length], IGNORED where there is none; ``rows``, ``count``."""
        import numpy as np

        labels = np.full((len(rows), max(map(len, rows))), IGNORED, np.int64)
        for index, row in enumerate(rows):
            labels[index, : len(row)] = row.labels
        count = float(np.count_nonzero(labels != IGNORED))
        return {"inputs": padded.inputs(rows, layout), "labels": labels, "rows": len(rows), "count": count}

    def outputs(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """The logits of every token, [tokens, labels], float32."""
        return CLASSES.logits(model, inputs)[inputs["attention_mask"].bool()]

    def metrics(self, model: Any, batch: Batch) -> Mapping[str, Sequence[Any]]:
        """For each row the sum of its losses, how many tags it has, and the guessed tag of each."""
        logits = CLASSES.logits(model, batch["inputs"])
        tagged = batch["labels"] != IGNORED
        guesses = logits.argmax(-1)
        kept = [row[mask].tolist() for row, mask in zip(guesses, tagged, strict=True)]
        losses = CLASSES.each(logits, batch).double()
        return {"loss": losses.tolist(), "count": tagged.sum(1).tolist(), KEPT: kept}

    def summarise(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        return {"loss": sums["loss"] / sums["count"]}

    def judge(
        self, kept: Sequence[Any], rows: Sequence[Encoded], examples: Callable[[], Sequence[Example]]
    ) -> Mapping[str, Any]:
        """Accuracy by word; where tags are of spans, precision, recall and F1 of whole spans, else macro F1."""
        truth = [[int(label) for label in row.labels if label != IGNORED] for row in rows]
        flat = [tag for row in kept for tag in row], [tag for row in truth for tag in row]
        scores = classified(*flat, self.labels)
        if not any(label.startswith(SPANS) for label in self.labels):
            return scores
        named = [[[self.labels[tag] for tag in row] for row in side] for side in (kept, truth)]
        always = {"accuracy": scores["majority"]["accuracy"]}
        return {"accuracy": scores["accuracy"], **entities(*named), "majority": always}


TASK = TokenClassification()
