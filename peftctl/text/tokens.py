"""Text to ids, with a loss weight for every id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from peftctl.example import RowFault, Segment, Segments


@dataclass(frozen=True)
class Encoded:
    """One row as the model sees it: ``ids`` [length], and ``weights`` [length], 0 where nothing is learned.

    The weight belongs to the token as a target: it scales the loss of predicting that id from those before it.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def supervised(self) -> int:
        """Targets that are learned. The first token has nothing before it to be predicted from."""
        return sum(weight != 0.0 for weight in self.weights[1:])


def encode(segments: Segments, tokenizer: Any) -> Encoded:
    """Ids and weights of ``segments``. Raises RowFault where the tokenizer cannot write what is to be learned.

    The text is tokenised as one, as inference tokenises a prompt, where that keeps every learned piece apart
    from its surroundings, and piece by piece otherwise. What is learned decodes to exactly the learned text.
    """
    pieces = _joined(segments.pieces)
    ids, weights = _whole(pieces, tokenizer) or _piecewise(pieces, tokenizer)
    if segments.whole:
        begin, end = _ends(tokenizer)
        if end is None:
            raise RowFault("the tokenizer has no end-of-text token to learn to stop with")
        last = pieces[-1].weight if pieces else 0.0
        ids, weights = [*begin, *ids, end], [*(0.0 for _ in begin), *weights, last]
    return Encoded(tuple(ids), tuple(weights))


def prompt_ids(text: str, tokenizer: Any, *, whole: bool) -> list[int]:
    """The ids of a prompt as training saw it: with the begin-of-text token where ``whole`` text has one."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*_ends(tokenizer)[0], *ids] if whole else ids


def _joined(pieces: Sequence[Segment]) -> list[Segment]:
    """The pieces without empty ones, neighbours of one weight as one: only where the weight changes is a boundary."""
    joined: list[Segment] = []
    for piece in pieces:
        if joined and piece.text and joined[-1].weight == piece.weight:
            joined[-1] = Segment(joined[-1].text + piece.text, piece.weight)
        elif piece.text:
            joined.append(piece)
    return joined


def _whole(pieces: Sequence[Segment], tokenizer: Any) -> tuple[list[int], list[float]] | None:
    """The text tokenised at once, or None where a token would be partly learned."""
    encoded = tokenizer("".join(piece.text for piece in pieces), add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    bounds = list(accumulate(len(piece.text) for piece in pieces))
    weights: list[float] = []
    at = 0
    for start, end in encoded["offset_mapping"]:
        while at < len(bounds) - 1 and start >= bounds[at]:
            at += 1
        if end > bounds[at]:
            return None
        weights.append(pieces[at].weight)
    # Some tokenizers leave white space out of a token's offsets, so a boundary can look clean and not be.
    return (ids, weights) if _decodes(ids, weights, pieces, tokenizer) else None


def _piecewise(pieces: Sequence[Segment], tokenizer: Any) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    for piece in pieces:
        new = tokenizer(piece.text, add_special_tokens=False)["input_ids"]
        ids += new
        weights += [piece.weight] * len(new)
    if not _decodes(ids, weights, pieces, tokenizer):
        raise RowFault("the tokenizer does not give the learned text back as it stands")
    return ids, weights


def _decodes(ids: Sequence[int], weights: Sequence[float], pieces: Sequence[Segment], tokenizer: Any) -> bool:
    """Whether each run of learned ids, decoded in its place, is a learned piece, and stands where that piece stands.

    The place is compared only where the tokenizer gives the whole text back: one that normalises text moves it.
    """
    runs = [run for run in _runs(weights) if weights[run[0]] != 0.0]
    ends = list(accumulate(len(piece.text) for piece in pieces))
    learned = [(piece.text, end - len(piece.text)) for piece, end in zip(pieces, ends, strict=True) if piece.weight]
    if len(runs) != len(learned):
        return False
    faithful = _decode(ids, tokenizer) == "".join(piece.text for piece in pieces)
    for (first, last), (text, place) in zip(runs, learned, strict=True):
        before = _decode(ids[:first], tokenizer)
        if _decode(ids[:last], tokenizer) != before + text or (faithful and len(before) != place):
            return False
    return True


def _runs(weights: Sequence[float]) -> list[tuple[int, int]]:
    """Where runs of equal weight begin and end."""
    starts = [at for at in range(len(weights)) if at == 0 or weights[at] != weights[at - 1]]
    return list(zip(starts, [*starts[1:], len(weights)], strict=True)) if starts else []


def _decode(ids: Sequence[int], tokenizer: Any) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _ends(tokenizer: Any) -> tuple[list[int], int | None]:
    """The begin-of-text ids this tokenizer puts before plain text, and its end-of-text id."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    special: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
    begins = special[:1] if special[:1] == [tokenizer.bos_token_id] and special[:1] != plain[:1] else []
    return begins, tokenizer.eos_token_id
