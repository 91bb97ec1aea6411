"""Extractive question answering: where in a text the answer to a question stands, or that it is not there.

A text that is too long becomes several rows, windows that share some tokens; the best span over all of them counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from peftctl.example import Example, RowFault, Span
from peftctl.objectives.span_cross_entropy import OBJECTIVE as SPANS
from peftctl.tasks import padded
from peftctl.tasks.answers import scored
from peftctl.tasks.contract import KEPT, Batch, EncodedExample, Layout
from peftctl.tasks.defaults import Defaults
from peftctl.text.tokens import Encoded

# What transformers' own example of this task has for both.
STRIDE, LONGEST_ANSWER = 128, 30
# Where a window's start and end are said to be when the answer is not in it: at its first token.
NOWHERE = 0.0


@dataclass(frozen=True)
class QuestionAnswering(Defaults):
    name: str = "question_answering"
    peft_type: str = "QUESTION_ANS"
    pipeline: str = "question-answering"
    accepts: tuple[type[Example], ...] = (Span,)
    objective: str = "span_cross_entropy"
    head: bool = True
    uses: tuple[str, ...] = ("no_answer", "stride", "max_answer_tokens")
    classes: bool = False
    results: tuple[str, ...] = ("start_logits", "end_logits")
    overlong: str = "split"
    ways: tuple[str, ...] = ("drop", "split")
    no_answer: bool = True
    stride: int = STRIDE
    longest_answer: int = LONGEST_ANSWER

    def of(self, settings: Any) -> QuestionAnswering:
        no_answer = settings.no_answer if settings.no_answer is not None else self.no_answer
        stride = settings.stride if settings.stride is not None else self.stride
        longest = settings.max_answer_tokens or self.longest_answer
        return replace(self, no_answer=no_answer, stride=stride, longest_answer=longest)

    def asks_rows(self, settings: Any) -> tuple[str, ...]:
        return ("no_answer",) if settings.no_answer is None else ()

    def decide(self, settings: Any, examples: Sequence[Example]) -> Mapping[str, Any]:
        """There may be no answer to a question if training has such a question."""
        task = self.of(settings)
        unanswered = any(not example.answers for example in examples if isinstance(example, Span))
        return {
            "no_answer": settings.no_answer if settings.no_answer is not None else unanswered,
            "stride": task.stride,
            "max_answer_tokens": task.longest_answer,
        }

    def probe(self, text: str) -> Span:
        return Span("What does it say?", text, ())

    def check(self, examples: Sequence[Example]) -> list[str]:
        unanswered = sum(not example.answers for example in examples if isinstance(example, Span))
        if unanswered and not self.no_answer:
            return [f"task.no_answer: false, and {unanswered} training rows have no answer: they teach none"]
        if self.no_answer and not unanswered:
            return ["task.no_answer: true, and every training row has an answer: nothing teaches that there is none"]
        return []

    def model_class(self, config: Any = None) -> Any:
        from transformers import AutoModelForQuestionAnswering

        return AutoModelForQuestionAnswering

    def configure(self, config: Any) -> None:
        config.num_labels = 2  # of each token: how likely the answer begins there, and ends there

    def encode(self, examples: Sequence[Example], tokenizer: Any, learn: str = "assistant") -> list[EncodedExample]:
        """Question and whole text; labels are the first answer's first and last token. ``parts``: how many tokens come
        before the text and after it, then the place in the text where each of its tokens begins, then where it ends."""
        rows = [example for example in examples if isinstance(example, Span)]
        both = [row.question for row in rows], [row.context for row in rows]
        made: list[EncodedExample] = []
        for row, encoding in zip(rows, padded.encoded(tokenizer, *both), strict=True):
            try:
                made.append([_encoded(row, encoding)])
            except RowFault as fault:
                made.append(fault)
        return made

    def learned(self, row: Encoded, tokenizer: Any) -> str:
        first, last = map(int, row.labels)
        return f"answer {tokenizer.decode(row.ids[first : last + 1])!r}" if first >= row.parts[0] else "no answer in it"

    def fit(self, row: Encoded, longest: int, how: str, tokenizer: Any) -> list[Encoded]:
        """The row, or its windows. None where the question leaves no room for the text."""
        if len(row) <= longest:
            return [row]
        before, after = row.parts[:2]
        room = longest - before - after
        if how == "drop" or room < 1:
            return []
        count = len(row) - before - after
        step = room - min(self.stride, room // 2)
        starts = [0, *(start for start in range(step, count, step) if start + room - step < count)]
        return [_window(row, start, min(start + room, count)) for start in starts]

    def collate(self, rows: Sequence[Encoded], layout: Layout) -> Batch:
        """``inputs``; ``labels`` [rows, 2], the first and the last token of the answer; ``text`` [rows, length], where
        an answer may stand; ``rows``, ``count``."""
        import numpy as np

        text = np.zeros((len(rows), max(map(len, rows))), bool)
        for index, row in enumerate(rows):
            text[index, row.parts[0] : len(row) - row.parts[1]] = True
        labels = np.array([row.labels for row in rows], np.int64)
        inputs = padded.inputs(rows, layout, second=[row.parts[0] for row in rows])
        return {"inputs": inputs, "labels": labels, "text": text, "rows": len(rows), "count": float(len(rows))}

    def outputs(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """How likely an answer begins, and ends, at each token of the text, [tokens, 2], float32."""
        logits = SPANS.logits(model, inputs)
        return logits[inputs["attention_mask"].bool()]

    def metrics(self, model: Any, batch: Batch) -> Mapping[str, Sequence[Any]]:
        """For each row its loss, and the best span in it: its likelihood, its first and last token in the text, and
        the likelihood that there is none."""
        logits = SPANS.logits(model, batch["inputs"])
        losses = SPANS.each(logits, batch).double().tolist()
        kept = [self._best(row, text) for row, text in zip(logits, batch["text"], strict=True)]
        return {"loss": losses, "count": [1.0] * len(losses), KEPT: kept}

    def _best(self, logits: Any, text: Any) -> tuple[float, int, int, float]:
        import torch

        start, end = logits[text, 0], logits[text, 1]
        both = start[:, None] + end[None, :]
        length = torch.arange(len(end), device=both.device)
        length = length[None, :] - length[:, None] + 1
        both = both.masked_fill((length < 1) | (length > self.longest_answer), -torch.inf)
        best = int(both.argmax())
        first, last = divmod(best, len(end))
        return float(both[first, last]), first, last, float(logits[0].sum())

    def summarise(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        return {"loss": sums["loss"] / sums["count"]}

    def judge(
        self, kept: Sequence[Any], rows: Sequence[Encoded], examples: Callable[[], Sequence[Example]]
    ) -> Mapping[str, Any]:
        """Exact match and F1 as SQuAD has them, over questions."""
        windows = zip(examples(), kept, rows, strict=True)
        found = []
        for _, group in groupby(windows, key=lambda window: id(window[0])):
            of_one = list(group)
            example = of_one[0][0]
            assert isinstance(example, Span)
            found.append((self._answer(example, of_one), [text for _, text in example.answers]))
        return scored(found)

    def _answer(self, example: Span, windows: Sequence[Any]) -> str:
        """The likeliest span of all windows; nothing where every window says more clearly that there is none."""
        _, best, row = max(windows, key=lambda window: window[1][0])
        if self.no_answer and min(window[1][3] for window in windows) > best[0]:
            return ""
        places = row.parts[2:]
        return example.context[places[best[1]] : places[len(places) // 2 + best[2]]].strip()


def _encoded(row: Span, encoding: Any) -> Encoded:
    ids, of = tuple(encoding.ids), encoding.sequence_ids
    text = [at for at, number in enumerate(of) if number == 1]
    if not text:
        raise RowFault("the tokenizer makes nothing of the context")
    places = [encoding.offsets[at] for at in text]
    labels = (NOWHERE, NOWHERE)
    if row.answers:
        start, answer = row.answers[0]
        inside = [
            at for at, (begin, end) in zip(text, places, strict=True) if end > start and begin < start + len(answer)
        ]
        if not inside:
            raise RowFault(f"the tokenizer makes nothing of the answer {answer!r}")
        labels = (float(inside[0]), float(inside[-1]))
    around = (text[0], len(ids) - text[-1] - 1)
    return Encoded(ids, (0.0,) * len(ids), labels, (*around, *(at for at, _ in places), *(at for _, at in places)))


def _window(row: Encoded, start: int, end: int) -> Encoded:
    """The part of the text from token ``start`` to before ``end``, between what stands around it."""
    before, after = row.parts[:2]
    count = len(row) - before - after
    ids = (*row.ids[:before], *row.ids[before + start : before + end], *row.ids[len(row) - after :])
    first, last = row.labels
    inside = first >= before and first - before >= start and last - before < end
    labels = (first - start, last - start) if inside else (NOWHERE, NOWHERE)
    places = row.parts[2:]
    kept = (*places[start:end], *places[count + start : count + end])
    return Encoded(ids, (0.0,) * len(ids), labels, (before, after, *kept))


TASK = QuestionAnswering()
