"""How alike two texts are, as the cosine of their vectors, against a number.

loss = sum_i (cos(u_i, v_i) - score_i)^2 / rows        (Reimers and Gurevych 2019, section 3)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.objectives.contract import Loss, of_rows
from peftctl.objectives.embeddings import embed


@dataclass(frozen=True)
class CosineSimilarity:
    name: str = "cosine_similarity"
    splittable: bool = True

    def count(self, row: Any) -> float:
        return 1.0

    def step(self, model: Any, batch: Mapping[str, Any], *, by_row: bool = False) -> Loss:
        """``order`` [texts] puts the texts of ``inputs`` back in their order; ``anchors`` and ``candidates`` [rows] are
        a row's two; ``scores`` [rows]."""
        vectors = embed(model, batch["inputs"], batch["pooling"], again=batch["again"])[batch["order"]]
        return of_rows(self.each(vectors, batch), batch, by_row=by_row)

    def each(self, vectors: Any, batch: Mapping[str, Any]) -> Any:
        """Each row's loss, [rows]."""
        cosines = (vectors[batch["anchors"]] * vectors[batch["candidates"]]).sum(-1)
        return (cosines - batch["scores"]) ** 2


OBJECTIVE = CosineSimilarity()
