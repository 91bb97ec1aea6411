"""Whether all of a model came out of its checkpoint: what did not is random numbers, which nobody trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from peftctl.errors import UsageError

SHOWN = 3


def none(name: str) -> bool:
    """For a model that has to come whole: no tensor may be new."""
    return False


def check(
    name: str,
    info: Mapping[str, Any],
    model: Any,
    note: Callable[[str], None],
    may_be_new: Callable[[str], bool] = none,
) -> list[str]:
    """What ``model``, loaded from the checkpoint ``name``, has of its own: tensors that were not there and
    ``may_be_new``, as a task's new head may. They have to be trained, and saved with what is trained.

    ``info`` is transformers' account of the loading. Raises UsageError naming the tensors that are missing, of another
    shape, or have no place in a layer that the model has; ``note`` hears what is left over elsewhere.
    """
    missing, mismatched, unexpected = (sorted(info[f"{key}_keys"]) for key in ("missing", "mismatched", "unexpected"))
    faults = []
    if lacking := [each for each in missing if not may_be_new(each)]:
        faults.append(f"{_some(lacking)} {_are(lacking)} not in it, and would be random numbers")
    if misfits := [
        f"{each} ({_shape(there)}, where config.json asks for {_shape(here)})"
        for each, there, here in mismatched
        if not may_be_new(each)
    ]:
        faults.append(f"{_some(misfits)} {_are(misfits)} of another shape there")
    if strays := [each for each in unexpected if _in_a_layer(each, model)]:
        faults.append(f"{_some(strays)} {_are(strays)} in it, for which config.json makes no place")
    if faults:
        raise UsageError(
            f"model.name: {name} is not the whole of a {type(model).__name__}: {'; '.join(faults)}",
            "its config.json and weights do not belong together, or it was made for something else",
        )
    if unexpected:
        kinds = list(dict.fromkeys(re.sub(r"\.\d+(?=\.)", ".*", each) for each in unexpected))
        note(
            f"{name}: {len(unexpected)} tensor{'s' if len(unexpected) > 1 else ''} of the checkpoint "
            f"{_are(unexpected)} no part of a {type(model).__name__} and left out: {_some(kinds)}"
        )
    return sorted({*missing, *(each for each, _, _ in mismatched)})


def _in_a_layer(name: str, model: Any) -> bool:
    """Whether a tensor belongs to a layer that the model has, and computes without it."""
    layer, _, last = name.rpartition(".")
    if last not in ("weight", "bias"):
        return False
    try:
        found = model.get_submodule(layer)
    except AttributeError:
        return False
    return next(found.parameters(recurse=False), None) is not None


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _are(names: Collection[str]) -> str:
    return "are" if len(names) > 1 else "is"


def _shape(size: Sequence[int]) -> str:
    return "×".join(str(each) for each in size)
