"""Texts that belong together against all others of the step (van den Oord et al. 2018, arXiv:1807.03748, eq. 4).

loss = sum_i -log( exp(a_i . p_i / t) / sum_j exp(a_i . c_j / t) ) / rows

a: the anchors, p: what belongs to them, c: every p and every named negative of the step, t: the temperature; all of
length 1. What says the same as p_i, or as a_i itself, is no wrong answer and left out of the sum.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.objectives.contract import Loss, of_rows
from peftctl.objectives.embeddings import embed


@dataclass(frozen=True)
class Contrastive:
    name: str = "contrastive"
    splittable: bool = False

    def count(self, row: Any) -> float:
        return 1.0

    def step(self, model: Any, batch: Mapping[str, Any], *, by_row: bool = False) -> Loss:
        """``order`` [texts] puts the texts of ``inputs`` back in their order; ``anchors`` [rows] and ``candidates`` say
        which of them is what; ``right`` [rows], a row's own candidate; ``same`` [rows, candidates], what is no wrong
        one."""
        vectors = embed(model, batch["inputs"], batch["pooling"], again=batch["again"])[batch["order"]]
        return of_rows(self.each(vectors, batch), batch, by_row=by_row)

    def each(self, vectors: Any, batch: Mapping[str, Any]) -> Any:
        """Each row's loss, [rows]."""
        import torch

        scores = vectors[batch["anchors"]] @ vectors[batch["candidates"]].T / batch["temperature"]
        scores = scores.masked_fill(batch["same"], -torch.inf)
        return torch.nn.functional.cross_entropy(scores, batch["right"], reduction="none")


OBJECTIVE = Contrastive()
