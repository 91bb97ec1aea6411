"""Rows as the model will see them, what became of all of them, and what a person should know before training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from peftctl.data import stream
from peftctl.data.encode import TOO_LONG, Encoding, Rows, encode, encode_some
from peftctl.data.prepare import Opened, prepare
from peftctl.data.sources import Note, Sourced
from peftctl.data.store import Stored
from peftctl.errors import UsageError
from peftctl.example import Conversation, RowFault, Segments
from peftctl.recipe.schema import Recipe
from peftctl.text.template import end_of_turn
from peftctl.text.tokens import Encoded

PERCENTILES = (0, 10, 50, 90, 95, 99, 100)
BARS = 10
SHORT = 3  # tokens: an answer under so many is worth a look
TOGETHER = 8
MANY = 0.05  # of the rows: what is worth a warning


@dataclass(frozen=True)
class Token:
    """A token as text, its id, and how much it is learned: 0 where it is only read."""

    text: str
    id: int
    weight: float


@dataclass(frozen=True)
class Shown:
    """A row: where it came from, its tokens, what was cut away before and after them, and what is ``learned`` of it,
    in words, where that is something else than tokens."""

    place: str
    part: str
    tokens: Sequence[Token]
    cut_before: int = 0
    cut_after: int = 0
    learned: str = ""

    def as_dict(self) -> dict[str, Any]:
        tokens = [{"text": token.text, "id": token.id, "weight": token.weight} for token in self.tokens]
        cuts = {"cut_before": self.cut_before, "cut_after": self.cut_after}
        return {"place": self.place, "part": self.part, **cuts, "learned": self.learned, "tokens": tokens}


@dataclass(frozen=True)
class Measured:
    """One side's rows in figures: ``facts`` as the manifest has them, lengths in tokens, what is learned, doubles."""

    facts: Mapping[str, Any]
    percentiles: Mapping[int, int]
    histogram: Sequence[tuple[int, int, int]]
    duplicates: int
    answers: int
    short_answers: int
    without_end: int

    def as_dict(self) -> dict[str, Any]:
        bars = [{"from": low, "to": high, "rows": count} for low, high, count in self.histogram]
        return {
            **self.facts,
            "length_percentiles": {str(share): length for share, length in self.percentiles.items()},
            "length_histogram": bars,
            "supervised_share": self.facts["supervised_tokens"] / self.facts["tokens"],
            "duplicates": self.duplicates,
            "answers": self.answers,
            "answers_under_3_tokens": self.short_answers,
            "answers_without_end_of_turn": self.without_end,
        }


@dataclass(frozen=True)
class Preview:
    """What ``peftctl data`` says. ``also_trained``: held-out rows that are training rows too; ``also_asked``: those
    whose question is one of the training rows'."""

    recipe: Recipe
    sides: Mapping[str, Measured]
    rows: Sequence[Shown]
    also_trained: int = 0
    also_asked: int = 0
    warnings: Sequence[str] = field(default_factory=tuple)

    def as_dict(self) -> dict[str, Any]:
        data = self.recipe.data
        return {
            "model": self.recipe.model.name,
            "template": data.template,
            "max_length": data.max_length,
            "overlong": data.overlong,
            "sources": [source.model_dump(mode="json", exclude_none=True) for source in data.train],
            "sides": {name: side.as_dict() for name, side in self.sides.items()},
            "eval_rows_in_train": self.also_trained,
            "eval_questions_in_train": self.also_asked,
            "warnings": list(self.warnings),
            "rows": [row.as_dict() for row in self.rows],
        }


def preview(opened: Opened, note: Note, *, side: str = "train", start: int = 1, count: int = 3) -> Preview:
    """The rows numbered ``start`` (from 1) and the ``count - 1`` after it, of one side, and figures of both.

    Of a stream the first block is measured. Raises DataError as training would, UsageError where there is no such row.
    """
    recipe, encoding = opened.recipe, opened.encoding
    sides = _first(recipe, encoding, note) if recipe.data.streaming else _all(opened, note)
    if side not in sides:
        raise UsageError(f"--from {side}: the recipe holds out no rows", "set data.eval")
    shown = _shown(sides[side], encoding, start, count)
    measured = {name: _measured(rows, encoding) for name, rows in sides.items()}
    both = (_both(sides["train"].encoded, sides["eval"].encoded)) if "eval" in sides else (0, 0)
    made = Preview(recipe, measured, shown, *both)
    warnings = (*_warnings(made, encoding), *_control(sides, encoding.tokenizer))
    return Preview(recipe, measured, shown, *both, warnings)


def _all(opened: Opened, note: Note) -> dict[str, Rows]:
    data = prepare(opened.recipe, opened.encoding, opened.sides, note)
    return {"train": data.train} | ({"eval": data.eval} if data.eval else {})


def _first(recipe: Recipe, encoding: Encoding, note: Note) -> dict[str, Rows]:
    held_out = stream.held_out(recipe, encoding, note)
    rows = {"train": encode(stream.first(recipe, note), encoding, "training")}
    return rows | ({"eval": held_out} if held_out else {})


def _shown(rows: Rows, encoding: Encoding, start: int, count: int) -> list[Shown]:
    examples = rows.read_again()
    numbers = list(dict.fromkeys(rows.of.tolist()))  # those of which something is left
    if not 1 <= start <= len(numbers):
        raise UsageError(f"--row: there is no row {start}; allowed: 1 to {len(numbers)}")
    wanted = [examples[number] for number in numbers[start - 1 : start - 1 + count]]
    return [shown for sourced in wanted for shown in _parts(sourced, encoding)]


def _parts(sourced: Sourced, encoding: Encoding) -> Iterator[Shown]:
    """The example's rows, each with what was cut away of it."""
    (made,) = encode_some([sourced.example], encoding)
    if isinstance(made, RowFault):  # with on_bad_row: drop; it was left out before
        return
    limits = encoding.max_length, encoding.overlong, encoding.tokenizer
    kept = [(row, part) for row in made for part in encoding.task.fit(row, *limits)]
    kept = [(row, part) for row, part in kept if part.supervised]
    for number, (row, part) in enumerate(kept, start=1):
        lost = len(row) - len(part) if encoding.overlong != "split" else 0
        before = lost if encoding.overlong == "truncate_start" else 0
        label = f"row {number} of {len(kept)}" if len(kept) > 1 else ""
        learned = encoding.task.learned(part, encoding.tokenizer)
        yield Shown(str(sourced.place), label, tokens(part, encoding.tokenizer), before, lost - before, learned)


def tokens(row: Encoded, tokenizer: Any) -> list[Token]:
    """The row's tokens, each with the text that it adds; a letter that several tokens make goes to the last of them."""

    def text_of(start: int, end: int) -> str:
        text: str = tokenizer.backend_tokenizer.decode(list(row.ids[start:end]), skip_special_tokens=False)
        return text

    found = []
    start, given = 0, ""  # since where tokens are looked at together, and their text as far as it is given
    for at, (number, weight) in enumerate(zip(row.ids, row.weights, strict=True), start=1):
        text = text_of(start, at)
        whole = not text.endswith("\N{REPLACEMENT CHARACTER}")
        # The first token's weight is never used: nothing comes before it to predict it from.
        found.append(Token(text[len(given) :] if whole else "", number, weight if at > 1 else 0.0))
        if whole:
            given = text
            if at - start > TOGETHER:  # one token stays, since some decoders drop the space before the first one
                start, given = at - 1, text_of(at - 1, at)
    return found


def _measured(rows: Rows, encoding: Encoding) -> Measured:
    lengths = rows.encoded.lengths
    percentiles = {share: int(np.percentile(lengths, share, method="nearest")) for share in PERCENTILES}
    longest = int(lengths.max())
    width = max(1, -(-longest // BARS))
    bars = np.bincount((lengths - 1) // width, minlength=1)
    histogram = [(at * width + 1, (at + 1) * width, int(count)) for at, count in enumerate(bars)]
    answers = _answers(rows.encoded)
    ends = None if encoding.learn == "all" else _ends(encoding)  # with all, white space after the end is learned too
    last = rows.encoded.ids[answers[:, 1] - 1] if len(answers) else np.empty(0, np.int32)
    without = int(np.count_nonzero(~np.isin(last, list(ends)))) if ends is not None else 0
    short = int(np.count_nonzero(np.diff(answers, axis=1)[:, 0] - (ends is not None) < SHORT)) if len(answers) else 0
    return Measured(rows.facts(), percentiles, histogram, _doubles(rows.encoded), len(answers), short, without)


def _ends(encoding: Encoding) -> set[int] | None:
    """The ids that an answer may end with: the template's end of turn and the end of text; None where there is none."""
    found = {encoding.tokenizer.eos_token_id}
    with suppress(RowFault, UsageError):
        found.add(end_of_turn(encoding.tokenizer))
    found.discard(None)
    return found or None


def _answers(stored: Stored) -> npt.NDArray[np.int64]:
    """Where each run of learned tokens begins and ends, [answers, 2]; a run never goes over a row's end."""
    learned = stored.weights != 0
    fresh = np.zeros(len(learned) + 1, bool)
    fresh[stored.bounds] = True
    before = np.concatenate([[False], learned[:-1]])
    begins = learned & (~before | fresh[:-1])
    ends = learned & (~np.concatenate([learned[1:], [False]]) | fresh[1:])
    return np.stack([np.flatnonzero(begins), np.flatnonzero(ends) + 1], axis=1)


def _keys(stored: Stored) -> list[bytes]:
    return [stored.ids[a:b].tobytes() for a, b in zip(stored.bounds[:-1], stored.bounds[1:], strict=True)]


def _questions(stored: Stored) -> list[bytes]:
    """What comes before the first learned token of each row; all of it where no tokens are learned."""
    if stored.labels:
        return _keys(stored)
    answers = _answers(stored)
    first = answers[np.searchsorted(answers[:, 0], stored.bounds[:-1]), 0]
    return [stored.ids[a:b].tobytes() for a, b in zip(stored.bounds[:-1], first, strict=True)]


def _doubles(stored: Stored) -> int:
    """Rows that are the same as one before them."""
    return len(stored) - len(set(map(hash, _keys(stored))))


def _both(train: Stored, held_out: Stored) -> tuple[int, int]:
    """How many held-out rows are training rows, and how many ask what a training row asks."""
    trained, asked = set(_keys(train)), {key for key in _questions(train) if key}
    same = sum(key in trained for key in _keys(held_out))
    return same, sum(bool(key) and key in asked for key in _questions(held_out))


def _warnings(made: Preview, encoding: Encoding) -> Iterator[str]:
    if made.also_trained:
        yield f"{made.also_trained:,} held-out rows are training rows too: what is measured is partly memory"
    elif made.also_asked:
        yield f"{made.also_asked:,} held-out rows ask exactly what a training row asks"
    for name, side in made.sides.items():
        for warning in _of_side(side, made.recipe.data.max_length):
            yield f"{name}: {warning}"
    if encoding.task.generates and _ends(encoding) is None:
        yield "no end of turn is learned: neither template nor tokenizer has a token for it"


def _control(sides: Mapping[str, Rows], tokenizer: Any) -> Iterator[str]:
    """Rows whose own text holds what the tokenizer takes for a special token."""
    special = sorted(set(map(str, tokenizer.all_special_tokens)), key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, special)) or r"(?!)")
    for name, rows in sides.items():
        held = Counter(word for sourced in rows.sources for word in set(pattern.findall(_own_text(sourced))))
        for word, count in held.most_common(3):
            yield f"{name}: {count:,} rows hold the text {word}, which becomes that special token"


def _own_text(sourced: Sourced) -> str:
    example = sourced.example
    if isinstance(example, Conversation):
        return "\0".join(turn.content for turn in example.turns)
    return "\0".join(piece.text for piece in example.pieces) if isinstance(example, Segments) else ""


def _of_side(side: Measured, longest: int | None) -> Iterator[str]:
    facts = side.facts
    read = max(1, facts["read"] - facts.get("held_out", 0))
    long = facts["dropped"].get(TOO_LONG, 0)
    for count, what in ((long, "are dropped as"), (facts.get("truncated", 0), "are cut for being")):
        if count > MANY * read:
            yield f"{count:,} of {read:,} rows ({count / read:.0%}) {what} longer than data.max_length {longest}"
    if other := sum(facts["dropped"].values()) - long:
        yield f"{other:,} of {read:,} rows are dropped because they are bad or have nothing to learn"
    if side.duplicates > 0.01 * facts["rows"]:
        yield f"{side.duplicates:,} of {facts['rows']:,} rows are the same as one before them"
    if side.without_end:
        yield (
            f"{side.without_end:,} of {side.answers:,} answers do not end with an end of turn, "
            "so where to stop is not learned there"
        )
    if side.short_answers > MANY * side.answers:
        yield f"{side.short_answers:,} of {side.answers:,} answers have under {SHORT} tokens"
