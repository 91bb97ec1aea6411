"""Text to ids, with a loss weight for every id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from peftctl.example import RowFault, Segments


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
    ids, weights = _whole(segments, tokenizer) or _piecewise(segments, tokenizer)
    if segments.whole:
        begin, end = _ends(tokenizer)
        if end is None:
            raise RowFault("the tokenizer has no end-of-text token to learn to stop with")
        last = segments.pieces[-1].weight if segments.pieces else 0.0
        ids, weights = [*begin, *ids, end], [*(0.0 for _ in begin), *weights, last]
    return Encoded(tuple(ids), tuple(weights))


def prompt_ids(text: str, tokenizer: Any, *, whole: bool) -> list[int]:
    """The ids of a prompt as training saw it: with the begin-of-text token where ``whole`` text has one."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [*_ends(tokenizer)[0], *ids] if whole else ids


def _whole(segments: Segments, tokenizer: Any) -> tuple[list[int], list[float]] | None:
    """The text tokenised at once, or None where a token would be partly learned."""
    text = "".join(piece.text for piece in segments.pieces)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = encoded["input_ids"]
    bounds = list(accumulate(len(piece.text) for piece in segments.pieces))
    weights: list[float] = []
    piece = 0
    for start, end in encoded["offset_mapping"]:
        while piece < len(bounds) - 1 and start >= bounds[piece]:
            piece += 1
        if end > bounds[piece]:
            return None
        weights.append(segments.pieces[piece].weight)
    # Some tokenizers leave the space before a word out of its offsets, so a boundary can look clean and not be.
    return (ids, weights) if _decodes(ids, weights, segments, tokenizer) else None


def _piecewise(segments: Segments, tokenizer: Any) -> tuple[list[int], list[float]]:
    ids: list[int] = []
    weights: list[float] = []
    for piece in segments.pieces:
        new = tokenizer(piece.text, add_special_tokens=False)["input_ids"]
        ids += new
        weights += [piece.weight] * len(new)
    if not _decodes(ids, weights, segments, tokenizer):
        raise RowFault("the tokenizer does not give the learned text back as it stands")
    return ids, weights


def _decodes(ids: Sequence[int], weights: Sequence[float], segments: Segments, tokenizer: Any) -> bool:
    """Whether each run of learned ids, decoded in its place, is the learned text."""
    wanted = _runs([(piece.text, piece.weight) for piece in segments.pieces])
    start = 0
    for run, weight in _id_runs(ids, weights):
        end = start + len(run)
        if weight != 0.0:
            before = _decode(ids[:start], tokenizer)
            if not wanted or _decode(ids[:end], tokenizer) != before + wanted.pop(0):
                return False
        start = end
    return not wanted


def _runs(pieces: Sequence[tuple[str, float]]) -> list[str]:
    """The texts of the learned pieces, neighbours of one weight joined."""
    runs: list[str] = []
    previous = 0.0
    for text, weight in pieces:
        if weight != 0.0 and weight == previous:
            runs[-1] += text
        elif weight != 0.0:
            runs.append(text)
        previous = weight
    return runs


def _id_runs(ids: Sequence[int], weights: Sequence[float]) -> list[tuple[list[int], float]]:
    runs: list[tuple[list[int], float]] = []
    for token, weight in zip(ids, weights, strict=True):
        if runs and runs[-1][1] == weight:
            runs[-1][0].append(token)
        else:
            runs.append(([token], weight))
    return runs


def _decode(ids: Sequence[int], tokenizer: Any) -> str:
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _ends(tokenizer: Any) -> tuple[list[int], int | None]:
    """The begin-of-text ids this tokenizer puts before plain text, and its end-of-text id."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    special: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
    begins = special[:1] if special[:1] == [tokenizer.bos_token_id] and special[:1] != plain[:1] else []
    return begins, tokenizer.eos_token_id
