"""How well vectors find what belongs together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Ids = tuple[int, ...]
ANCHOR, POSITIVE = 0, 1
AT = (1, 10)
CHUNK = 512


def retrieved(vectors: Sequence[Any], texts: Sequence[Sequence[Ids]], temperature: float) -> dict[str, float]:
    """Recall at 1 and at 10, the mean reciprocal rank, and the contrastive loss over all candidates.

    ``vectors`` and ``texts`` are of each row's anchor, positive and, where it has one, negative. Candidates are all
    texts but the anchors, each once. A row's rank is that of its positive among those that are right for no row with
    the same anchor, and are not the anchor itself; a tie counts against it.
    """
    import torch

    numbers: dict[Ids, int] = {}
    of_candidates: list[Any] = []
    right_for: dict[Ids, set[int]] = {}
    for row, found in zip(texts, vectors, strict=True):
        for ids, vector in zip(row[POSITIVE:], found[POSITIVE:], strict=True):
            if ids not in numbers:
                numbers[ids] = len(of_candidates)
                of_candidates.append(vector)
        right_for.setdefault(row[ANCHOR], set()).add(numbers[row[POSITIVE]])
    candidates, anchors = torch.stack(of_candidates), torch.stack([found[ANCHOR] for found in vectors])
    ranks: list[int] = []
    losses: list[float] = []
    for start in range(0, len(texts), CHUNK):
        rows = texts[start : start + CHUNK]
        scores = anchors[start : start + CHUNK] @ candidates.T
        own = torch.tensor([numbers[row[POSITIVE]] for row in rows])
        for at, row in enumerate(rows):
            others = right_for[row[ANCHOR]] | {numbers.get(row[ANCHOR], int(own[at]))}
            scores[at, sorted(others - {int(own[at])})] = -torch.inf
        of_own = scores.gather(1, own[:, None])
        ranks += (scores >= of_own).sum(1).tolist()
        losses += torch.nn.functional.cross_entropy(scores / temperature, own, reduction="none").tolist()
    count = len(ranks)
    recalls = {f"recall_at_{most}": sum(rank <= most for rank in ranks) / count for most in AT}
    return {"loss": sum(losses) / count, **recalls, "mrr": sum(1 / rank for rank in ranks) / count}
