"""What becomes of rows longer than the recipe's max_length."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from peftctl.text.tokens import Encoded

# Why ``drop`` is the default: it is the only way that is seen in the counts alone, and changes no row. A row cut at its
# end teaches an answer without its end, one cut at its start an answer to a question that is not there.


def fit(row: Encoded, longest: int, how: str, begin: int | None) -> list[Encoded]:
    """The row if it is short enough, else what ``how`` makes of it; [] where it is dropped.

    ``begin`` is the id that begins texts: a row whose start is truncated keeps it.
    """
    return [row] if len(row) <= longest else WAYS[how](row, longest, begin)


def _drop(row: Encoded, longest: int, begin: int | None) -> list[Encoded]:
    return []


def _truncate_end(row: Encoded, longest: int, begin: int | None) -> list[Encoded]:
    return [_part(row, 0, longest)]


def _truncate_start(row: Encoded, longest: int, begin: int | None) -> list[Encoded]:
    if begin is None or row.ids[0] != begin:
        return [_part(row, len(row) - longest, len(row))]
    kept = _part(row, len(row) - longest + 1, len(row))
    return [Encoded((begin, *kept.ids), (0.0, *kept.weights))]


def _split(row: Encoded, longest: int, begin: int | None) -> list[Encoded]:
    """Parts of ``longest`` tokens, the last one shorter; each repeats the last token of the one before it.

    A row's first token is never learned, so without that token the first one of each part would be lost.
    """
    parts = []
    for start in range(0, len(row) - 1, longest - 1):
        part = _part(row, start, min(start + longest, len(row)))
        parts.append(part if start == 0 else replace(part, weights=(0.0, *part.weights[1:])))
    return parts


def _part(row: Encoded, start: int, end: int) -> Encoded:
    return Encoded(row.ids[start:end], row.weights[start:end])


WAYS: dict[str, Callable[[Encoded, int, int | None], list[Encoded]]] = {
    "drop": _drop,
    "truncate_end": _truncate_end,
    "truncate_start": _truncate_start,
    "split": _split,
}
