"""Which tensor on disk is which parameter of the model: names change between the two, and some are made of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Layout:
    """``disk``: parameter or buffer to the one tensor on disk that it is, as it is. ``made``: those that are made of
    other tensors or in other forms, as experts are that a layer computes together. ``other``: tensors on disk that
    are no part of the model. ``tied``: parameters that are another one too, each with that other one.
    """

    disk: Mapping[str, str]
    made: Mapping[str, tuple[str, ...]]
    other: tuple[str, ...]
    tied: Mapping[str, str]


def layout(model: Any, stored: Iterable[str]) -> Layout:
    """How the tensors ``stored`` by name become ``model`` when transformers loads them."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, dot_natural_key, rename_source_key

    transforms = get_model_conversion_mapping(model)
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    renamings = [each for each in transforms if not isinstance(each, WeightConverter)]
    state = model.state_dict()
    disk: dict[str, str] = {}
    made: dict[str, list[str]] = {}
    other = []
    for name in sorted(stored, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, model.base_model_prefix, state)
        if pattern is not None:
            made.setdefault(renamed, []).append(name)
        elif renamed in state and renamed not in disk:
            disk[renamed] = name
        else:
            other.append(name)
    return Layout(disk, {name: tuple(parts) for name, parts in made.items()}, tuple(other), _tied(model, disk))


def _tied(model: Any, disk: Mapping[str, str]) -> dict[str, str]:
    """Each name of a parameter that has several, with the one that is kept: the first that is on disk."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied: dict[str, str] = {}
    for group in names.values():
        kept = next((name for name in group if name in disk), group[0])
        tied |= {name: kept for name in group if name != kept}
    return tied
