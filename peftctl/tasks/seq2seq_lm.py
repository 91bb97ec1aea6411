"""Text to text, by a model that reads one text whole and writes the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftctl.example import Example, Pair, RowFault, Turn
from peftctl.objectives.seq2seq_cross_entropy import OBJECTIVE as WRITES
from peftctl.tasks import padded, texts
from peftctl.tasks.contract import Batch, EncodedExample, Layout
from peftctl.tasks.defaults import Defaults
from peftctl.text.tokens import IGNORED, Encoded


@dataclass(frozen=True)
class Seq2SeqLM(Defaults):
    name: str = "seq2seq_lm"
    peft_type: str = "SEQ_2_SEQ_LM"
    accepts: tuple[type[Example], ...] = (Pair,)
    objective: str = "seq2seq_cross_entropy"
    generates: bool = True
    ways: tuple[str, ...] = ("drop", "truncate_end")

    def probe(self, text: str) -> Pair:
        return Pair(text, text)

    def prompt(self, asked: str | Sequence[Turn], tokenizer: Any) -> list[int]:
        """Ids of the text that is to be read, as training saw it."""
        assert isinstance(asked, str)
        ids: list[int] = tokenizer(asked)["input_ids"]
        return ids

    def asked(self, example: Example, tokenizer: Any) -> tuple[list[int], str] | None:
        assert isinstance(example, Pair)
        return self.prompt(example.first, tokenizer), example.second

    def written(self, pairs: Sequence[tuple[str, str]]) -> Mapping[str, float]:
        return {"exact_match": texts.exact_match(pairs), **texts.overlaps(pairs)}

    def model_class(self, config: Any = None) -> Any:
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM

    def encode(self, examples: Sequence[Example], tokenizer: Any, learn: str = "assistant") -> list[EncodedExample]:
        """What is read and then what is written, which is learned; ``parts`` are their lengths."""
        rows = [example for example in examples if isinstance(example, Pair)]
        read = padded.encoded(tokenizer, [row.first for row in rows])
        written = tokenizer(text_target=[row.second for row in rows])["input_ids"] if rows else []
        made: list[EncodedExample] = []
        for row, source, target in zip(rows, read, written, strict=True):
            if row.score is not None:
                made.append(RowFault("a pair with a score, where one text is to be written"))
            elif not source.ids or not target:
                made.append(RowFault(f"the tokenizer makes nothing of the {'target' if source.ids else 'source'}"))
            else:
                ends = (tokenizer.eos_token_id,) if tokenizer.eos_token_id not in (None, target[-1]) else ()
                made.append([_row(tuple(source.ids), (*target, *ends))])  # without an end nothing teaches to stop
        return made

    def fit(self, row: Encoded, longest: int, how: str, tokenizer: Any) -> list[Encoded]:
        """The row with each of its texts at most ``longest``; one that is cut keeps its last token if it is special."""
        sides = [Encoded(ids, (0.0,) * len(ids)) for ids in _sides(row)]
        fitting = [padded.fit(side, longest, how, tokenizer) for side in sides]
        return [_row(*(side.ids for (side,) in fitting))] if all(fitting) else []

    def collate(self, rows: Sequence[Encoded], layout: Layout) -> Batch:
        """``inputs`` of the encoder; ``labels`` [rows, length], what is written, IGNORED behind it; ``rows``,
        ``count``."""
        import numpy as np

        read, written = zip(*(_sides(row) for row in rows), strict=True)
        labels = np.full((len(rows), max(map(len, written))), IGNORED, np.int64)
        for index, ids in enumerate(written):
            labels[index, : len(ids)] = ids
        inputs = padded.inputs([Encoded(ids, ()) for ids in read], layout)
        count = float(sum(map(len, written)))
        return {"inputs": {**inputs, "labels": labels}, "labels": labels, "rows": len(rows), "count": count}

    def outputs(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """Every logit of what is written, [targets, vocabulary], float32."""
        return WRITES.logits(model, inputs)[inputs["labels"] != IGNORED]

    def metrics(self, model: Any, batch: Batch) -> Mapping[str, Sequence[float]]:
        """For each row the loss of its targets, how many of them were the likeliest, and how many there are."""
        logits = WRITES.logits(model, batch["inputs"])
        losses, learned = WRITES.each(logits, batch).double(), batch["labels"] != IGNORED
        right = (logits.argmax(-1) == batch["labels"]) & learned
        return {"loss": losses.sum(1).tolist(), "right": right.sum(1).tolist(), "count": learned.sum(1).tolist()}

    def summarise(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        return texts.of_tokens(sums)


def _row(read: tuple[int, ...], written: tuple[int, ...]) -> Encoded:
    weights = (0.0,) * len(read) + (1.0,) * len(written)
    return Encoded((*read, *written), weights, (), (len(read), len(written)))


def _sides(row: Encoded) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return row.ids[: row.parts[0]], row.ids[row.parts[0] :]


TASK = Seq2SeqLM()
