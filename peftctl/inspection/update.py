"""How large the change is that an adapter makes to a layer, and of how many directions it consists.

For a low-rank update s B A (A [r, inputs], B [outputs, r]) both follow from two r x r matrices, B'B and A A': the
squares of the singular values of B A are the eigenvalues of L' (A A') L with B'B = L L'. B A itself, which would be
as large as the layer, is never made. The effective rank is the exponential of the entropy of the singular values,
divided by their sum (Roy and Vetterli 2007, https://ieeexplore.ieee.org/document/7098875).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite, sqrt

import numpy as np

from peftctl.inspection.bounded import Tensor
from peftctl.inspection.tensors import Array, Reader, readable

MOST_RANK = 1024
PAIRS = (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B"))
DIAGONAL = "lora_E"


@dataclass(frozen=True)
class Module:
    """The adapter of one module. ``norm`` (Frobenius) and ``effective_rank`` of its update, None where not measured.

    ``tensors``: the Frobenius norm of each part, where the update's own was not measured. ``finite``: no
    NaN and no infinity in it. ``neutral``: a part that still is what changes nothing, or "".
    """

    name: str
    parameters: int
    rank: int | None = None
    scale: float | None = None
    norm: float | None = None
    effective_rank: float | None = None
    tensors: Mapping[str, float | None] = field(default_factory=dict)
    finite: bool = True
    neutral: str = ""


@dataclass(frozen=True)
class Size:
    """A tensor's Frobenius norm, None where it has none; whether it is finite; whether it is ``neutral`` throughout."""

    norm: float | None
    finite: bool
    neutral: bool


def measured(reader: Reader, tensor: Tensor, neutral: float | None = None) -> Size:
    """The tensor's size. ``neutral``: the value that changes nothing."""
    total, same, finite = 0.0, neutral is not None, True
    with np.errstate(all="ignore"):
        for piece in reader.flat(tensor):
            total += float(piece @ piece)
            same = same and bool((piece == neutral).all())
            finite = finite and (isfinite(total) or bool(np.isfinite(piece).all()))
    return Size(sqrt(total) if isfinite(total) else None, finite, same)


def measure(
    reader: Reader, name: str, parts: Mapping[str, Tensor], neutral: Mapping[str, float], scale: float | None
) -> Module:
    """The figures of one module's adapter, whose parts' shapes agree with each other.

    ``neutral``: for each part the value that changes nothing. ``scale``: what B A is multiplied by.
    """
    able = {part: tensor for part, tensor in parts.items() if readable(tensor)}
    pair = next((pair for pair in PAIRS if _low_rank(able, pair)), ())
    grams = [_gram(reader, able[part], of_rows=at == 0) for at, part in enumerate(pair)]
    # A matrix of products tells what is in the tensor, unless it is not finite: then the tensor is read once more.
    known = {
        part: Size(sqrt(float(gram.trace())), True, not gram.any())
        for part, gram in zip(pair, grams, strict=True)
        if _finite(gram)
    }
    known |= {part: measured(reader, tensor, neutral.get(part)) for part, tensor in able.items() if part not in known}
    figures = None
    if pair and scale is not None and (DIAGONAL not in parts or DIAGONAL in able):
        diagonal = next(reader.flat(able[DIAGONAL])) if DIAGONAL in able else None
        figures = _figures(grams[0], grams[1], scale, diagonal)
    norms = {} if figures else {part: known[part].norm if part in known else None for part in parts}
    return Module(
        name=name,
        parameters=sum(tensor.parameters for tensor in parts.values()),
        scale=scale,
        norm=figures[0] if figures else None,
        effective_rank=figures[1] if figures else None,
        tensors=norms,
        finite=all(size.finite for size in known.values()),
        neutral=next((part for part, size in known.items() if size.neutral and part in neutral), ""),
    )


def _low_rank(parts: Mapping[str, Tensor], pair: tuple[str, str]) -> bool:
    """Whether A [r, ...] and B [outputs, r] are there, B with nothing but ones behind r."""
    if not all(part in parts for part in pair):
        return False
    down, up = (parts[part] for part in pair)
    rank = down.shape[0] if down.shape else 0
    return 1 <= rank <= MOST_RANK and len(up.shape) > 1 and up.shape[1] == rank and up.parameters == up.shape[0] * rank


def _gram(reader: Reader, tensor: Tensor, *, of_rows: bool) -> Array:
    """A A' of A [r, ...] (``of_rows``), or B'B of B [outputs, r]: [r, r]."""
    rank = tensor.shape[0] if of_rows else tensor.shape[1]
    total = np.zeros((rank, rank))
    with np.errstate(all="ignore"):
        for piece in reader.columns(tensor, rank) if of_rows else reader.rows(tensor, rank):
            total += piece @ piece.T if of_rows else piece.T @ piece
    return total


def _finite(values: Array) -> bool:
    return bool(np.isfinite(values).all())


def _figures(inner: Array, outer: Array, scale: float, diagonal: Array | None) -> tuple[float, float] | None:
    """Norm and effective rank of scale B diag(diagonal) A from A A' and B'B; None where they are not finite."""
    with np.errstate(all="ignore"):
        if diagonal is not None:
            inner = inner * np.outer(diagonal, diagonal)
        if not (_finite(inner) and _finite(outer)):
            return None
        values = abs(scale) * _singular(inner, outer)
        norm = float(np.sqrt(values @ values))
    return (norm, effective_rank(values)) if isfinite(norm) else None


def _singular(inner: Array, outer: Array) -> Array:
    """Singular values of B A from A A' and B'B, each [r, r] and finite."""
    try:
        root = np.linalg.cholesky(outer)
    except np.linalg.LinAlgError:  # a direction of B is empty
        values, vectors = np.linalg.eigh(outer)
        root = vectors * np.sqrt(values.clip(0))
    found: Array = np.sqrt(np.linalg.eigvalsh(root.T @ inner @ root).clip(0))
    return found


def effective_rank(values: Array) -> float:
    """The exponential of the entropy of singular values [r] divided by their sum; 0 where all are 0."""
    total = float(values.sum())
    if not total > 0:
        return 0.0
    shares = values[values > 0] / total
    return float(np.exp(-(shares * np.log(shares)).sum()))
