"""How far two models' logits are apart."""

from __future__ import annotations

from typing import Any


def divergence(one: Any, two: Any) -> float:
    """The mean Kullback-Leibler divergence of ``two`` from ``one``, in nats; both [positions, classes].

    It is of the order of the square of their difference, so it is computed in float64, position by position.
    """
    total = 0.0
    for p, q in zip(one, two, strict=True):
        log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum())
    return max(0.0, total / len(one))  # which rounding may bring below it
