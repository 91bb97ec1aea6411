"""Which modules get an adapter: a recipe's words resolved to full names on the real module tree.

PEFT would take a name that matches nothing without a word as long as another matches, and takes a text for a
regular expression that can run for ever. So names are resolved here, and PEFT is handed the full list.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peftctl.errors import UsageError
from peftctl.nearest import nearest

ALL_LINEAR = "all-linear"


def linear_shapes(model: Any) -> dict[str, tuple[int, int]]:
    """Every linear layer by its full name, with (inputs, outputs); GPT-2's transposed Conv1D is one."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    shapes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            shapes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            shapes[name] = (module.weight.shape[0], module.weight.shape[1])
    return shapes


def resolve(model: Any, wanted: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The targets by full name, in the model's order, with (inputs, outputs) each; none where none are wanted.

    Raises UsageError naming every entry that matches nothing that can be targeted.
    """
    shapes = linear_shapes(model)
    chosen: set[str] = set()
    faults = []
    for entry in wanted:
        if entry == ALL_LINEAR:
            chosen |= shapes.keys() - _heads(model)
            continue
        matched = {name for name in shapes if _matches(entry, name)}
        chosen |= matched
        if not matched:
            faults.append(_no_match(entry, model, shapes))
    tied = sorted(chosen & _tied(model))
    if tied:
        faults.append(
            f"method.targets: {tied[0]} shares its weight with the input embedding, so an adapter on it "
            "would be merged into both"
        )
    if faults:
        raise UsageError("\n".join(faults))
    return {name: shape for name, shape in shapes.items() if name in chosen}


def _matches(entry: str, name: str) -> bool:
    if any(sign in entry for sign in "*?["):
        return fnmatch.fnmatchcase(name, entry)
    return name == entry or name.endswith(f".{entry}")


def _no_match(entry: str, model: Any, shapes: Mapping[str, Any]) -> str:
    others = [(name, type(module).__name__) for name, module in model.named_modules() if _matches(entry, name)]
    if others:
        name, kind = others[0]
        return f"method.targets: {entry!r} matches {name}, a {kind}, which is no linear layer"
    last_names = list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in shapes))
    near = nearest(entry.rsplit(".", 1)[-1], [name for name in last_names if not name.isdigit()])
    text = f"method.targets: {entry!r} matches no module; linear layers here: {', '.join(last_names)}"
    return f"{text}; did you mean {near}?" if near else text


def _heads(model: Any) -> set[str]:
    """The output head: all-linear leaves it alone, as PEFT's does."""
    head = model.get_output_embeddings()
    return {name for name, module in model.named_modules() if head is not None and module is head}


def _tied(model: Any) -> set[str]:
    """Linear layers whose weight is the input embedding's."""
    embedding = model.get_input_embeddings()
    weight = getattr(embedding, "weight", None)
    return {
        name
        for name, module in model.named_modules()
        if module is not embedding and weight is not None and getattr(module, "weight", None) is weight
    }


def summary(names: Iterable[str]) -> dict[str, int]:
    """Targets counted by their name with layer numbers left out, for a log line."""
    counts: dict[str, int] = {}
    for name in names:
        short = re.sub(r"\.\d+(?=\.)", ".*", name)
        counts[short] = counts.get(short, 0) + 1
    return counts
