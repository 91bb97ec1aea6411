"""Rows of an encoder or a classifier as one tensor, padded on the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftctl.errors import UsageError
from peftctl.tasks.contract import Layout
from peftctl.text.tokens import Encoded


def inputs(rows: Sequence[Encoded], layout: Layout, second: Sequence[int] | None = None) -> dict[str, Any]:
    """input_ids and attention_mask [rows, length], and token_type_ids where the model takes them: 1 in a row's second
    part, which begins at ``second``, by default where ``parts`` say so."""
    import numpy as np

    shape = (len(rows), max(len(row) for row in rows))
    ids, mask = np.full(shape, layout.pad_id), np.zeros(shape, np.int64)
    types = np.zeros(shape, np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row.ids
        mask[index, : len(row)] = 1
        start = second[index] if second else row.parts[0] if len(row.parts) > 1 else len(row)
        types[index, start : len(row)] = 1
    made = {"input_ids": ids, "attention_mask": mask}
    return {**made, "token_type_ids": types} if layout.types else made


def encoded(tokenizer: Any, first: Sequence[Any], second: Sequence[Any] | None = None, **options: Any) -> Any:
    """The texts as the tokenizer's own encodings, with the special tokens that the model expects around them."""
    both = (list(first), list(second)) if second is not None else (list(first),)
    return tokenizer(*both, return_attention_mask=False, return_token_type_ids=False, **options).encodings


def parts(encoding: Any) -> tuple[int, ...]:
    """The lengths of a row's two parts: the second begins behind the special token that ends the first."""
    types = encoding.type_ids
    if 1 in types:
        start = types.index(1)
        return (start, len(types) - start)
    sequences = encoding.sequence_ids
    if 1 not in sequences:
        return ()
    start = sequences.index(1)
    return (start, len(sequences) - start)


def fit(row: Encoded, longest: int, how: str, tokenizer: Any) -> list[Encoded]:
    """The row if it is short enough, else what ``how`` makes of it. Raises UsageError for a way that is none here."""
    if len(row) <= longest:
        return [row]
    if how == "split":
        raise UsageError("data.overlong: split: what is learned of these rows is learned of the whole row")
    if how == "drop":
        return []
    if how == "truncate_start":  # the first token, which is special in most, stays
        return [_joined(row, slice(0, 1), slice(len(row) - longest + 1, len(row)))]
    ends = int(row.ids[-1] in tokenizer.all_special_ids)  # and so does a special one at the end
    return [_joined(row, slice(0, longest - ends), slice(len(row) - ends, len(row)))]


def _joined(row: Encoded, *slices: slice) -> Encoded:
    ids = tuple(number for part in slices for number in row.ids[part])
    weights = tuple(weight for part in slices for weight in row.weights[part])
    by_token = len(row.labels) == len(row.ids)
    labels = tuple(label for part in slices for label in row.labels[part]) if by_token else row.labels
    if not row.parts:
        return Encoded(ids, weights, labels)
    first = sum(1 for part in slices for at in range(len(row))[part] if at < row.parts[0])
    return Encoded(ids, weights, labels, (first, len(ids) - first))


def passes(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Rows of these lengths, which do not grow, in groups that have at most ``tokens`` when padded; 0: in one."""
    groups: list[list[int]] = []
    for at in range(len(lengths)):
        if not groups or (tokens and (len(groups[-1]) + 1) * lengths[groups[-1][0]] > tokens):
            groups.append([])
        groups[-1].append(at)
    return groups
