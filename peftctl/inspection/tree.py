"""A model's modules as a tree, with what is alike in every block written once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from peftctl.inspection.facts import Branch

Signature = tuple[Any, ...]


def tree(model: Any) -> tuple[Branch, ...]:
    """Every module that differs from the one before it."""
    return tuple(_branches(model, "", 0, 1, {}))


def _branches(module: Any, name: str, depth: int, times: int, known: dict[int, Signature]) -> Iterator[Branch]:
    own = dict(module.named_parameters(recurse=False))
    shapes = tuple(f"{last} {' × '.join(map(str, parameter.shape))}" for last, parameter in own.items())
    total = times * sum(parameter.numel() for parameter in module.parameters())
    yield Branch(depth, name, type(module).__name__, total, shapes)
    for called, child, alike in _alike(module, known):
        yield from _branches(child, called, depth + 1, times * alike, known)


def _alike(module: Any, known: dict[int, Signature]) -> Iterator[tuple[str, Any, int]]:
    """A module's children, numbered neighbours that are alike as one: their names, the first, and how many."""
    run: list[tuple[str, Any]] = []
    for name, child in module.named_children():
        if run and not (name.isdigit() and run[-1][0].isdigit() and _same(run[-1][1], child, known)):
            yield _joined(run)
            run = []
        run.append((name, child))
    if run:
        yield _joined(run)


def _joined(run: list[tuple[str, Any]]) -> tuple[str, Any, int]:
    names = run[0][0] if len(run) == 1 else f"{run[0][0]}-{run[-1][0]}"
    return names, run[0][1], len(run)


def _same(one: Any, other: Any, known: dict[int, Signature]) -> bool:
    return _signature(one, known) == _signature(other, known)


def _signature(module: Any, known: dict[int, Signature]) -> Signature:
    """What a module is made of, all the way down."""
    if id(module) not in known:
        own = tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters(recurse=False))
        below = tuple((name, _signature(child, known)) for name, child in module.named_children())
        known[id(module)] = (type(module).__name__, own, below)
    return known[id(module)]
