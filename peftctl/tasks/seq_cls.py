"""Classification of texts or pairs of texts: one class, several at once, or a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftctl.errors import DataError
from peftctl.example import Example, Labelled, RowFault
from peftctl.tasks import labels as names
from peftctl.tasks import padded
from peftctl.tasks.contract import KEPT, Batch, EncodedExample, Layout
from peftctl.tasks.defaults import Defaults
from peftctl.tasks.scores import classified, correlated, several
from peftctl.text.tokens import Encoded

SINGLE, MULTI, REGRESSION = "single", "multi", "regression"
OBJECTIVES = {SINGLE: "class_cross_entropy", MULTI: "multi_label", REGRESSION: "regression"}
WRONG = "label of another kind"


@dataclass(frozen=True)
class SequenceClassification(Defaults):
    name: str = "seq_cls"
    peft_type: str = "SEQ_CLS"
    pipeline: str = "text-classification"
    accepts: tuple[type[Example], ...] = (Labelled,)
    head: bool = True
    uses: tuple[str, ...] = ("labels", "problem")
    problems: tuple[str, ...] = (SINGLE, MULTI, REGRESSION)
    overlong: str = "truncate_end"
    ways: tuple[str, ...] = ("drop", "truncate_start", "truncate_end")
    labels: tuple[str, ...] = ()
    problem: str = SINGLE

    @property
    def objective(self) -> str:
        return OBJECTIVES[self.problem]

    @property
    def classes(self) -> bool:
        return self.problem == SINGLE

    @property
    def arguments(self) -> str:
        return ", num_labels=1" if self.problem == REGRESSION else names.told(self.labels)

    def of(self, settings: Any) -> SequenceClassification:
        return replace(self, labels=settings.labels or (), problem=settings.problem or SINGLE)

    def asks_rows(self, settings: Any) -> tuple[str, ...]:
        if settings.problem == REGRESSION:
            return ()
        return tuple(name for name in self.uses if getattr(settings, name) is None)

    def decide(self, settings: Any, examples: Sequence[Example]) -> Mapping[str, Any]:
        """The problem by what the labels are, and every label there is, where the recipe says neither. Raises DataError
        where they are numbers and names."""
        labels = [example.label for example in examples if isinstance(example, Labelled)]
        problem = settings.problem or _kind(labels, named=bool(settings.labels))
        if settings.labels and not settings.problem and problem == REGRESSION:
            problem = SINGLE  # what has names is no quantity
        if problem == REGRESSION or settings.labels:
            return {"problem": problem}
        flat = (name for label in labels for name in (label if isinstance(label, tuple) else (str(label),)))
        return {"problem": problem, "labels": names.found(flat, "label")}

    def probe(self, text: str) -> Labelled:
        label: Any = 0.0 if self.problem == REGRESSION else () if self.problem == MULTI else self.labels[0]
        return Labelled(text, label)

    def unfit(self, config: Any, tokenizer: Any) -> str:
        """A model that reads and writes has its classes told by the token that ends a text."""
        if not config.is_encoder_decoder or config.eos_token_id in tokenizer("a")["input_ids"]:
            return ""
        end = config.eos_token_id
        return f"its classifier reads the token that ends a text ({end}), which its tokenizer does not write"

    def check(self, examples: Sequence[Example]) -> list[str]:
        """What is odd about labels, in words. Raises DataError where regression has nothing to learn."""
        given = [example.label for example in examples if isinstance(example, Labelled)]
        if self.problem == REGRESSION:
            if len(set(given)) < 2:
                raise DataError("every row has the same number as its label: there is nothing to learn")
            return []
        seen = {name for label in given for name in (label if isinstance(label, tuple) else (str(label),))}
        empty = [label for label in self.labels if label not in seen]
        odd = [f"task.labels: no training row is {', '.join(empty[:5])}" + (" ..." if len(empty) > 5 else "")]
        odd = odd if empty else []
        numbers = [label for label in self.labels if _is_number(label)]
        if numbers and len(numbers) < len(self.labels):
            word = next(label for label in self.labels if label not in numbers)
            odd.append(f"task.labels: some are numbers ({', '.join(numbers[:3])}) and some are names ({word})")
        return odd

    def model_class(self, config: Any = None) -> Any:
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def configure(self, config: Any) -> None:
        """Give the model's config its head's size, and the labels their names."""
        if self.problem == REGRESSION:
            config.num_labels = 1
        else:
            config.id2label = dict(enumerate(self.labels))
            config.label2id = {label: number for number, label in enumerate(self.labels)}
        kinds = {SINGLE: "single_label", MULTI: "multi_label"}
        config.problem_type = REGRESSION if self.problem == REGRESSION else f"{kinds[self.problem]}_classification"

    def encode(self, examples: Sequence[Example], tokenizer: Any, learn: str = "assistant") -> list[EncodedExample]:
        rows = [example for example in examples if isinstance(example, Labelled)]
        made: list[EncodedExample] = []
        pairs = [row for row in rows if row.second is not None]
        if pairs and len(pairs) < len(rows):
            raise DataError("some rows have one text and some have two")
        second = [row.second for row in pairs] if pairs else None
        for row, encoding in zip(rows, padded.encoded(tokenizer, [row.text for row in rows], second), strict=True):
            try:
                ids = tuple(encoding.ids)
                made.append([Encoded(ids, (0.0,) * len(ids), self._numbers(row.label), padded.parts(encoding))])
            except RowFault as fault:
                made.append(fault)
        return made

    def _numbers(self, label: Any) -> tuple[float, ...]:
        if self.problem == REGRESSION:
            try:
                return (float(label),)
            except (TypeError, ValueError):
                raise RowFault(f"label {label!r} is no number, which task.problem: regression learns", WRONG) from None
        if self.problem == MULTI:
            numbers = [names.number(str(name), self.labels, "label") for name in _several(label)]
            return tuple(float(at in numbers) for at in range(len(self.labels)))
        if isinstance(label, tuple):
            raise RowFault("label is a list, where task.problem: single has one for each row", WRONG)
        return (float(names.number(str(label), self.labels, "label")),)

    def learned(self, row: Encoded, tokenizer: Any) -> str:
        if self.problem == REGRESSION:
            return f"value {row.labels[0]:g}"
        if self.problem == MULTI:
            return "labels " + ", ".join(name for name, there in zip(self.labels, row.labels, strict=True) if there)
        return f"label {self.labels[int(row.labels[0])]}"

    def fit(self, row: Encoded, longest: int, how: str, tokenizer: Any) -> list[Encoded]:
        return padded.fit(row, longest, how, tokenizer)

    def collate(self, rows: Sequence[Encoded], layout: Layout) -> Batch:
        """``inputs`` for the model's forward; ``labels`` [rows, numbers] float32; ``rows``, ``count``."""
        import numpy as np

        labels = np.array([row.labels for row in rows], np.float32)
        return {"inputs": padded.inputs(rows, layout), "labels": labels, "rows": len(rows), "count": float(labels.size)}

    def outputs(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """The logits of every row, [rows, labels], float32."""
        return model(**inputs).logits.float()

    def metrics(self, model: Any, batch: Batch) -> Mapping[str, Sequence[Any]]:
        """For each row the sum of its losses, how many these are, and ``kept``, the logits."""
        from peftctl.objectives import OBJECTIVES as TABLE

        logits = self.outputs(model, batch["inputs"])
        objective: Any = TABLE[self.objective]
        losses = objective.each(logits, batch).double()
        each = float(batch["labels"].shape[1])
        return {"loss": losses.tolist(), "count": [each] * len(losses), KEPT: logits.tolist()}

    def summarise(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        return {"loss": sums["loss"] / sums["count"]}

    def judge(
        self, kept: Sequence[Any], rows: Sequence[Encoded], examples: Callable[[], Sequence[Example]]
    ) -> Mapping[str, Any]:
        """Accuracy and macro F1 with a table by class; or for numbers their correlations."""
        truth = [row.labels for row in rows]
        if self.problem == REGRESSION:
            return correlated([each[0] for each in kept], [each[0] for each in truth])
        if self.problem == MULTI:
            return several([[value > 0 for value in each] for each in kept], truth, self.labels)
        guesses = [max(range(len(each)), key=each.__getitem__) for each in kept]
        return classified(guesses, [int(each[0]) for each in truth], self.labels)


def _kind(labels: Sequence[Any], *, named: bool) -> str:
    """What labels are: lists, names, or numbers where one has a point in it and all are numbers."""
    if labels and isinstance(labels[0], tuple):
        return MULTI
    number = next((label for label in labels if isinstance(label, float)), None)
    if number is None:
        return SINGLE
    name = next((label for label in labels if isinstance(label, str) and not _is_number(label)), None)
    if name is not None and not named:
        raise DataError(f"some labels are numbers and some are names (found {number} and {name!r})",
                        "task.problem says which they are")  # fmt: skip
    return REGRESSION


def _is_number(label: str) -> bool:
    return label.lstrip("-").isdecimal()  # as a whole number of a row is written


def _several(label: Any) -> tuple[Any, ...]:
    return label if isinstance(label, tuple) else (label,)


TASK = SequenceClassification()
