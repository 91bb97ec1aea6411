"""Texts as vectors: those that belong together close to each other, or as close as a number says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from peftctl.errors import DataError
from peftctl.example import Example, Pair, RowFault, Triple
from peftctl.objectives.cosine_similarity import OBJECTIVE as COSINE
from peftctl.objectives.embeddings import MEAN, embed, pool
from peftctl.tasks import padded
from peftctl.tasks.contract import KEPT, Batch, EncodedExample, Layout
from peftctl.tasks.defaults import Defaults
from peftctl.tasks.ranks import retrieved
from peftctl.tasks.scores import correlated
from peftctl.text.tokens import Encoded

RETRIEVAL, SIMILARITY = "retrieval", "similarity"
OBJECTIVES = {RETRIEVAL: "contrastive", SIMILARITY: "cosine_similarity"}
TEMPERATURE = 0.05
# Tokens of a pass: enough to keep a processor busy, and so few that texts of one pass are of like length.
PASS = 2048
WRONG = "row of another kind"


@dataclass(frozen=True)
class FeatureExtraction(Defaults):
    name: str = "feature_extraction"
    peft_type: str = "FEATURE_EXTRACTION"
    pipeline: str = "feature-extraction"
    accepts: tuple[type[Example], ...] = (Triple, Pair)
    uses: tuple[str, ...] = ("problem", "pooling", "temperature")
    problems: tuple[str, ...] = (RETRIEVAL, SIMILARITY)
    unused: tuple[str, ...] = ("pooler",)
    classes: bool = False
    results: tuple[str, ...] = ("last_hidden_state", "sentence_embedding")
    overlong: str = "truncate_end"
    ways: tuple[str, ...] = ("drop", "truncate_start", "truncate_end")
    problem: str = RETRIEVAL
    pooling: str = MEAN
    temperature: float = TEMPERATURE

    @property
    def objective(self) -> str:
        return OBJECTIVES[self.problem]

    def of(self, settings: Any) -> FeatureExtraction:
        return replace(
            self,
            problem=settings.problem or self.problem,
            pooling=settings.pooling or self.pooling,
            temperature=settings.temperature or self.temperature,
        )

    def asks_rows(self, settings: Any) -> tuple[str, ...]:
        return () if settings.problem else ("problem",)

    def decide(self, settings: Any, examples: Sequence[Example]) -> Mapping[str, Any]:
        """The problem by the first row: similarity where it has a score."""
        scored = bool(examples) and isinstance(examples[0], Pair) and examples[0].score is not None
        task = self.of(settings)
        problem = settings.problem or (SIMILARITY if scored else RETRIEVAL)
        told = {"temperature": task.temperature} if problem == RETRIEVAL else {}
        return {"problem": problem, "pooling": task.pooling, **told}

    def probe(self, text: str) -> Pair:
        return Pair(text, text, 1.0 if self.problem == SIMILARITY else None)

    def check(self, examples: Sequence[Example]) -> list[str]:
        """Raises DataError where all scores are the same."""
        scores = {example.score for example in examples if isinstance(example, Pair)} - {None}
        if self.problem == SIMILARITY and len(scores) == 1:
            raise DataError("every row has the same score: there is nothing to learn")
        return []

    def model_class(self, config: Any = None) -> Any:
        from transformers import AutoModel, AutoModelForTextEncoding

        # Of a model that reads and writes, the part that reads.
        return AutoModelForTextEncoding if config is not None and config.is_encoder_decoder else AutoModel

    def encode(self, examples: Sequence[Example], tokenizer: Any, learn: str = "assistant") -> list[EncodedExample]:
        """A row's texts end to end, each with its special tokens; ``parts`` are their lengths, the label the score."""
        made: list[list[str] | RowFault] = [self._texts(example) for example in examples]
        flat = [text for texts in made if isinstance(texts, list) for text in texts]
        encodings = iter(padded.encoded(tokenizer, flat) if flat else ())
        rows: list[EncodedExample] = []
        for example, texts in zip(examples, made, strict=True):
            if isinstance(texts, RowFault):
                rows.append(texts)
                continue
            ids = [tuple(next(encodings).ids) for _ in texts]
            score = example.score if isinstance(example, Pair) and example.score is not None else 1.0
            rows.append([_row(ids, (score,))] if all(ids) else RowFault("the tokenizer makes nothing of a text"))
        return rows

    def _texts(self, example: Example) -> list[str] | RowFault:
        if isinstance(example, Triple):
            if self.problem == SIMILARITY:
                return RowFault("a triple, where task.problem: similarity learns pairs with a score", WRONG)
            return [example.anchor, example.positive, example.negative]
        assert isinstance(example, Pair)
        if (example.score is not None) != (self.problem == SIMILARITY):
            has = "a score" if example.score is not None else "no score"
            return RowFault(f"the pair has {has}, and task.problem is {self.problem}", WRONG)
        if example.score is not None and not -1 <= example.score <= 1:
            return RowFault(f"score is {example.score:g}, where a cosine is in -1 to 1: divide scores by their largest")
        return [example.first, example.second]

    def learned(self, row: Encoded, tokenizer: Any) -> str:
        return f"score {row.labels[0]:g}" if self.problem == SIMILARITY else f"{len(row.parts)} texts"

    def fit(self, row: Encoded, longest: int, how: str, tokenizer: Any) -> list[Encoded]:
        """The row with each of its texts at most ``longest``, or none."""
        texts = [Encoded(ids, (0.0,) * len(ids)) for ids in _each(row)]
        fitting = [padded.fit(text, longest, how, tokenizer) for text in texts]
        if not all(fitting):
            return []
        return [_row([text.ids for (text,) in fitting], row.labels)]

    def collate(self, rows: Sequence[Encoded], layout: Layout) -> Batch:
        """The texts of all rows, the longest first, in passes of like lengths, which together may have at most
        ``layout.tokens`` for what they need on the way back to be kept.

        ``inputs``      a list of passes, each for the model's forward
        ``order``       [texts], where in the passes, end to end, a text is
        ``again``       whether what a pass needs on the way back is made again
        ``anchors``     [rows], ``candidates`` [n], which texts they are; ``right`` [rows], the candidate of each row
        ``same``        [rows, n], other candidates that say what the row's own, or its anchor, says
        ``scores``      [rows]; ``temperature``, ``pooling``; ``rows``, ``count``
        """
        import numpy as np

        texts = [ids for row in rows for ids in _each(row)]
        by_length = sorted(range(len(texts)), key=lambda at: -len(texts[at]))
        lengths = [len(texts[at]) for at in by_length]
        passes = padded.passes(lengths, min(layout.tokens or PASS, PASS))
        encoded = [Encoded(texts[at], ()) for at in by_length]
        starts = np.cumsum([0, *(len(row.parts) for row in rows)])[:-1]
        candidates = [start + 1 for start in starts]
        candidates += [start + 2 for start, row in zip(starts, rows, strict=True) if len(row.parts) > 2]
        kinds = {ids: number for number, ids in enumerate(dict.fromkeys(texts))}
        kind = np.array([kinds[ids] for ids in texts])
        right = np.arange(len(rows))
        same = kind[candidates][None, :] == kind[starts + 1][:, None]
        same |= kind[candidates][None, :] == kind[starts][:, None]
        same[right, right] = False
        return {
            # Each text is a first one, which types would say nothing of.
            "inputs": [padded.inputs([encoded[at] for at in group], replace(layout, types=False)) for group in passes],
            "order": np.argsort(by_length),
            "again": 0 < layout.tokens < sum(len(group) * lengths[group[0]] for group in passes),
            "anchors": starts,
            "candidates": np.array(candidates),
            "right": right,
            "same": same,
            "scores": np.array([row.labels[0] for row in rows], np.float32),
            "temperature": self.temperature,
            "pooling": self.pooling,
            "rows": len(rows),
            "count": float(len(rows)),
        }

    def outputs(self, model: Any, inputs: Any) -> Any:
        """The vectors of all texts, [texts, width], float32."""
        return embed(model, inputs, self.pooling)

    def result(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        hidden = model(**inputs).last_hidden_state
        return hidden, pool(hidden, inputs["attention_mask"], self.pooling)

    def metrics(self, model: Any, batch: Batch) -> Mapping[str, Sequence[Any]]:
        """The vectors of each row's texts; where pairs have scores its loss too."""
        vectors = embed(model, batch["inputs"], self.pooling)[batch["order"]]
        ends = [*batch["anchors"].tolist()[1:], len(vectors)]
        kept = {KEPT: [vectors[start:end].cpu() for start, end in zip(batch["anchors"].tolist(), ends, strict=True)]}
        if self.problem == RETRIEVAL:
            return kept
        losses = COSINE.each(vectors, batch).double()
        return {"loss": losses.tolist(), "count": [1.0] * len(losses), **kept}

    def summarise(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        return {"loss": sums["loss"] / sums["count"]} if "loss" in sums else {}

    def judge(
        self, kept: Sequence[Any], rows: Sequence[Encoded], examples: Callable[[], Sequence[Example]]
    ) -> Mapping[str, Any]:
        """How near the top what belongs to an anchor comes among all texts that are no anchors; or for scores the
        correlations of the cosines with them."""
        if self.problem == SIMILARITY:
            cosines = [float(first @ second) for first, second in kept]
            return correlated(cosines, [row.labels[0] for row in rows])
        return retrieved(kept, [_each(row) for row in rows], self.temperature)


def _row(texts: Sequence[tuple[int, ...]], labels: tuple[float, ...]) -> Encoded:
    ids = tuple(number for text in texts for number in text)
    return Encoded(ids, (0.0,) * len(ids), labels, tuple(map(len, texts)))


def _each(row: Encoded) -> list[tuple[int, ...]]:
    """The ids of each text of a row."""
    texts, start = [], 0
    for length in row.parts:
        texts.append(row.ids[start : start + length])
        start += length
    return texts


TASK = FeatureExtraction()
