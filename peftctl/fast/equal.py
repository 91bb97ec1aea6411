"""Whether one function computes what another does: outputs and gradients, for random inputs, within rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what looks at a run alone need not wait for torch
    import torch
    from torch import Tensor

    from peftctl.fast.linear import Group

SEED = 7


def random(like: Tensor, *shape: int, seed: int = SEED) -> Tensor:
    """Standard normal numbers in the dtype and on the device of ``like``; torch's own random state stays."""
    import torch

    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.to(like.device, like.dtype)


def tolerance(dtype: torch.dtype) -> float:
    """How far two ways of computing one thing may be apart, relative to its norm: some roundings, one after another."""
    import torch

    return max(4 * float(torch.finfo(dtype).eps), 2e-5)


def near(found: Tensor, wanted: Tensor, dtype: torch.dtype, depth: int = 1) -> bool:
    """Whether ``found`` is ``wanted`` within the tolerance of ``dtype``, in the norm, and finite.

    Through ``depth`` layers roundings that do not depend on each other grow with its square root.
    """
    difference = (found.double() - wanted.double()).norm()
    return bool(difference <= depth**0.5 * tolerance(dtype) * wanted.double().norm())


def same(
    plain: Callable[..., Any],
    fast: Callable[..., Any],
    inputs: Sequence[Tensor],
    parameters: Sequence[Tensor],
    keywords: Mapping[str, Any],
) -> bool:
    """Whether ``fast`` gives the output of ``plain`` and its gradients for ``inputs`` and ``parameters``."""
    found = [_outcome(function, inputs, parameters, keywords) for function in (plain, fast)]
    dtype = inputs[0].dtype
    return all(near(b, a, dtype) for a, b in zip(*found, strict=True))


def _outcome(
    function: Callable[..., Any], inputs: Sequence[Tensor], parameters: Sequence[Tensor], keywords: Mapping[str, Any]
) -> list[Tensor]:
    import torch

    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    with torch.enable_grad():
        out = function(*leaves, **keywords)
        out = out[0] if isinstance(out, tuple) else out
        wanted = [*leaves, *trained]
        grads = torch.autograd.grad(out, wanted, random(out, *out.shape, seed=SEED + 1), allow_unused=True)
    return [out.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads, strict=True))]


@contextmanager
def lively(groups: Sequence[Group]) -> Iterator[None]:
    """Updates that start at zero filled with random numbers for the while, so that they show."""
    updates = [update for group in groups for update in group.updates]
    saved = [update.up.detach().clone() for update in updates]
    try:
        for update in updates:
            update.up.data.copy_(random(update.up, *update.up.shape).div_(update.up.shape[0] ** 0.5))
        yield
    finally:
        for update, up in zip(updates, saved, strict=True):
            update.up.data.copy_(up)
