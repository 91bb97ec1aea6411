"""Whether the weights in a folder are those of the model that its config makes, told by names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

Stored = Mapping[str, Sequence[int]]
# What files hold beside a model's own tensors, and nobody misses: tables that the model computes.
COMPUTED = re.compile(r"(?:^|\.)(?:inv_freq|masked_bias|position_ids|rotary_emb\..*|attn\.bias)$")
# How tensors were once called.
FORMER = ((".gamma", ".weight"), (".beta", ".bias"))


def strange(model: Any, stored: Stored) -> tuple[str, ...]:
    """What of the ``stored`` tensors does not go with ``model``: shapes, tensors that it lacks, and too many.

    Nothing of a model whose tensors transformers renames or joins while it reads them, nor of names where the config
    declares another class: there this cannot be told from names.
    """
    if _renames(model):
        return ()
    own = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    places = {name: _place(name, own, model.base_model_prefix) for name in stored}
    found = []
    odd = [name for name, place in places.items() if place and list(stored[name]) != own[place]]
    if odd:
        first = odd[0]
        sizes = f"{first} is {list(stored[first])}, and {own[places[first]]} by the config"
        found.append(f"{_count(odd)} of another shape: {sizes}")
    declared = getattr(model.config, "architectures", None) or ()
    if type(model).__name__ not in declared:
        return tuple(found)
    there, names = set(places.values()), dict[int, set[str]]()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)  # more than one where it is tied
    ignored = getattr(model, "_keys_to_ignore_on_load_missing", None) or ()
    needed = [each for each in names.values() if not any(re.search(way, name) for way in ignored for name in each)]
    if missing := [min(each) for each in needed if not there & each]:
        found.append(f"{_count(missing)} of the model missing: {_some(missing)}")
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    extra = [name for name, place in places.items() if not place and not COMPUTED.search(name)]
    if extra := [name for name in extra if not any(re.search(each, name) for each in ignored)]:
        found.append(f"{_count(extra)} that the model has no place for: {_some(extra)}")
    return tuple(found)


def _renames(model: Any) -> bool:
    from transformers.conversion_mapping import get_model_conversion_mapping

    return bool(get_model_conversion_mapping(model, add_legacy=False))


def _place(name: str, own: Mapping[str, Any], prefix: str) -> str:
    """What the model calls a stored tensor, or "". Files may leave out the name of the model without its head."""
    for end, now in FORMER:
        name = name.removesuffix(end) + now if name.endswith(end) else name
    ways = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
    return next((way for way in ways if way in own), "")


def _count(names: Sequence[str]) -> str:
    return f"{len(names):,} tensor{'s' if len(names) != 1 else ''}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
