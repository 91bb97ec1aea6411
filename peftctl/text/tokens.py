"""Text to ids, with a loss weight for every id."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from peftctl.example import RowFault, Segment, Segments
from peftctl.text import byte_level

Cut = tuple[list[int], list[float]]  # ids and weights

IGNORED = -100  # the label that transformers leaves out, too


@dataclass(frozen=True)
class Encoded:
    """One row as the model sees it: ``ids`` [length], and ``weights`` [length], 0 where nothing is learned.

    The weight belongs to the token as a target: it scales the loss of predicting that id from those before it.
    ``labels``: what a task learns of the row instead, in its own words as numbers, ``IGNORED`` where there is nothing.
    ``parts``: the lengths of the texts that the row is made of, where it is made of several.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    labels: tuple[float, ...] = ()
    parts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def learns(self) -> bool:
        """Whether any target is learned."""
        return any(label != IGNORED for label in self.labels) if self.labels else any(self.weights[1:])

    @property
    def supervised(self) -> int:
        """Targets that are learned. The first token has nothing before it to be predicted from."""
        if self.labels:
            return sum(label != IGNORED for label in self.labels)
        return sum(weight != 0.0 for weight in self.weights[1:])


def encode(segments: Segments, tokenizer: Any) -> Encoded:
    """Ids and weights of ``segments``. Raises RowFault where the tokenizer cannot write what is to be learned."""
    (made,) = encode_all([segments], tokenizer)
    if isinstance(made, RowFault):
        raise made
    return made


def encode_all(rows: Sequence[Segments], tokenizer: Any) -> list[Encoded | RowFault]:
    """Ids and weights of every row, or why the tokenizer cannot write what is to be learned in it.

    The text is tokenised as one, as inference tokenises a prompt, where that keeps every learned piece apart
    from its surroundings, and piece by piece otherwise. What is learned decodes to exactly the learned text.
    """
    pieces = [_joined(row.pieces) for row in rows]
    ends = _ends(tokenizer) if any(row.whole for row in rows) else ([], None)
    made: list[Encoded | RowFault] = []
    for row, of_row, cut in zip(rows, pieces, _cuts(pieces, tokenizer), strict=True):
        try:
            ids, weights = cut or _piecewise(of_row, tokenizer)
            made.append(_finished(row, of_row, ids, weights, ends))
        except RowFault as fault:
            made.append(fault)
    return made


def _cuts(pieces: Sequence[Sequence[Segment]], tokenizer: Any) -> list[Cut | None]:
    """Each row tokenised at once, where that keeps every learned piece apart and decodes to it; else None."""
    texts = [_text(of_row) for of_row in pieces]
    found: list[Cut | None] = [None] * len(texts)
    left = list(range(len(texts)))
    if texts and (lengths := byte_level.lengths(tokenizer)) is not None:
        core = tokenizer.backend_tokenizer
        ids = [encoding.ids for encoding in core.encode_batch_fast(texts, add_special_tokens=False)]
        decoded = _decode_all(ids, tokenizer)
        for row, text in enumerate(texts):
            if decoded[row] == text:
                found[row] = _cut_by_bytes(ids[row], pieces[row], lengths)
        left = [row for row in left if decoded[row] != texts[row]]
    cuts = [
        _cut(encoding, pieces[row])
        for encoding, row in zip(_tokenised([texts[row] for row in left], tokenizer), left, strict=True)
    ]
    # Some tokenizers leave white space out of a token's offsets, so a boundary can look clean and not be.
    clean = [(row, cut) for row, cut in zip(left, cuts, strict=True) if cut]
    right = _decode_right([cut for _, cut in clean], [pieces[row] for row, _ in clean], tokenizer)
    for (row, cut), answer in zip(clean, right, strict=True):
        found[row] = cut if answer else None
    return found


def _finished(
    row: Segments, pieces: Sequence[Segment], ids: list[int], weights: list[float], ends: tuple[list[int], int | None]
) -> Encoded:
    if row.whole:
        begin, end = ends
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


def _text(pieces: Sequence[Segment]) -> str:
    return "".join(piece.text for piece in pieces)


def _cut_by_bytes(ids: list[int], pieces: Sequence[Segment], lengths: byte_level.Lengths) -> Cut | None:
    ends = byte_level.ends(ids, [piece.text for piece in pieces], lengths)
    if ends is None:
        return None
    weights: list[float] = []
    for piece, end in zip(pieces, ends, strict=True):
        weights += [piece.weight] * (end - len(weights))
    return ids, weights


def _tokenised(texts: Sequence[str], tokenizer: Any) -> list[Any]:
    """Each text's encoding, all of them at once and in parallel."""
    if not texts:
        return []
    made: list[Any] = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False
    ).encodings
    return made


def _cut(encoding: Any, pieces: Sequence[Segment]) -> Cut | None:
    """The row tokenised at once, or None where a token would be partly learned."""
    ids: list[int] = encoding.ids
    weights: list[float] = []
    bound = 0
    for number, piece in enumerate(pieces, start=1):
        bound += len(piece.text)
        last = len(ids)
        if number < len(pieces):
            at = encoding.char_to_token(bound)
            if at is None or encoding.token_to_chars(at)[0] != bound:
                return None
            if at and encoding.token_to_chars(at - 1)[1] > bound:
                return None
            last = at
        weights += [piece.weight] * (last - len(weights))
    return ids, weights


def _piecewise(pieces: Sequence[Segment], tokenizer: Any) -> Cut:
    ids: list[int] = []
    weights: list[float] = []
    for piece in pieces:
        new = tokenizer(piece.text, add_special_tokens=False)["input_ids"]
        ids += new
        weights += [piece.weight] * len(new)
    if not _decode_right([(ids, weights)], [pieces], tokenizer)[0]:
        raise RowFault("the tokenizer does not give the learned text back as it stands")
    return ids, weights


def _decode_right(rows: Sequence[Cut], pieces: Sequence[Sequence[Segment]], tokenizer: Any) -> list[bool]:
    """For every row whether each run of learned ids, decoded in its place, is a learned piece, and stands there.

    The place is compared only where the tokenizer gives the whole text back: one that normalises text moves it.
    """
    runs = [[run for run in _runs(weights) if weights[run[0]] != 0.0] for _, weights in rows]
    wanted = []
    for (ids, _), of_row in zip(rows, runs, strict=True):
        wanted += [ids, *(ids[:at] for run in of_row for at in run)]
    texts = iter(_decode_all(wanted, tokenizer))
    answers = []
    for of_row, segments in zip(runs, pieces, strict=True):
        whole = next(texts)
        found = [(next(texts), next(texts)) for _ in of_row]
        ends = list(accumulate(len(piece.text) for piece in segments))
        learned = [(p.text, end - len(p.text)) for p, end in zip(segments, ends, strict=True) if p.weight]
        faithful = whole == _text(segments)
        answers.append(
            len(found) == len(learned)
            and all(
                through == before + text and (not faithful or len(before) == place)
                for (before, through), (text, place) in zip(found, learned, strict=True)
            )
        )
    return answers


def _runs(weights: Sequence[float]) -> list[tuple[int, int]]:
    """Where runs of equal weight begin and end."""
    starts = [0] if weights else []
    starts += [at for at, (one, other) in enumerate(pairwise(weights), start=1) if one != other]
    return list(pairwise([*starts, len(weights)]))


def _decode_all(rows: list[list[int]], tokenizer: Any) -> list[str]:
    texts: list[str] = tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=False)
    return texts


def _ends(tokenizer: Any) -> tuple[list[int], int | None]:
    """The begin-of-text ids this tokenizer puts before plain text, and its end-of-text id."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    special: list[int] = tokenizer("a", add_special_tokens=True)["input_ids"]
    begins = special[:1] if special[:1] == [tokenizer.bos_token_id] and special[:1] != plain[:1] else []
    return begins, tokenizer.eos_token_id
