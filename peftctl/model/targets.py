"""Which modules get an adapter: a recipe's words resolved to full names on the real module tree.

PEFT would take a name that matches nothing without a word as long as another matches, and takes a text for a
regular expression that can run for ever. So names are resolved here, and PEFT is handed the full list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from peftctl.errors import UsageError
from peftctl.methods import Method, MethodSettings
from peftctl.methods.names import matches, no_match, within
from peftctl.methods.parts import heads, left_alone, outside

ALL_LINEAR = "all-linear"
LONGEST = 300  # characters of an entry: no module's name is as long


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


def of(model: Any, method: Method, settings: MethodSettings) -> dict[str, tuple[int, int]]:
    """What ``method`` goes into in ``model``, a base as it comes: the recipe's targets, or else its own choice.

    Raises UsageError as ``resolve`` does, and where the method has nothing there that it could go into.
    """
    written = settings.wanted
    wanted = outside(method.choose(model), left_alone(model)) if written is None else written
    matched = resolve(model, wanted, method.targetable(model))
    return dict(method.narrow(model, settings, matched))


def resolve(
    model: Any, wanted: Sequence[str], targetable: Mapping[str, tuple[int, int]] | None = None
) -> dict[str, tuple[int, int]]:
    """The targets by full name, in the model's order, with (inputs, outputs) each; none where none are wanted.

    ``targetable``: what may be one, by default every linear layer. What rows of text never go through is left alone,
    whatever a name or pattern matches beside it. Raises UsageError naming every entry that matches nothing that can be
    targeted.
    """
    shapes = linear_shapes(model) if targetable is None else targetable
    shapes = {name: shapes[name] for name in _not_whole(model, outside(shapes, left_alone(model)))}
    chosen: set[str] = set()
    faults = []
    for entry in wanted:
        if len(entry) > LONGEST:
            faults.append(
                f"method.targets: an entry of {len(entry):,} characters, longer than any module's name; "
                f"allowed: at most {LONGEST}"
            )
            continue
        if entry == ALL_LINEAR:
            matched = (shapes.keys() & linear_shapes(model).keys()) - _heads(model)
        else:
            matched = {name for name in shapes if matches(entry, name)}
        chosen |= matched
        if not matched:
            faults.append(
                _no_match(entry, model, shapes, "linear layer" if targetable is None else "target of this method")
            )
    shared = _shared(model)
    if tied := sorted(chosen & shared.keys()):
        faults.append(
            f"method.targets: {tied[0]} shares its weight with {shared[tied[0]]}, so an adapter on it "
            "would be merged into both"
        )
    if faults:
        raise UsageError("\n".join(faults))
    return {name: shape for name, shape in shapes.items() if name in chosen}


def _no_match(entry: str, model: Any, shapes: Mapping[str, Any], kind: str) -> str:
    others = {name: type(module).__name__ for name, module in model.named_modules() if matches(entry, name)}
    parts = left_alone(model)
    if reached := outside(others, parts):
        return f"method.targets: {entry!r} matches {reached[0]}, a {others[reached[0]]}, which is no {kind}"
    if others:
        part = next(part for part in parts if within(next(iter(others)), part))
        return f"method.targets: {entry!r} matches only what is in {part}, which rows of text never go through"
    first, *rest = kind.split(" of ")
    return no_match("method.targets", entry, shapes, "module", " of ".join([f"{first}s", *rest]))


def _heads(model: Any) -> set[str]:
    """The output head: all-linear leaves it alone, as PEFT's does."""
    head = model.get_output_embeddings()
    return {name for name, module in model.named_modules() if head is not None and module is head}


def _not_whole(model: Any, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that are in no head that is trained whole anyway."""
    return outside(names, heads(model))


def _shared(model: Any) -> dict[str, str]:
    """Modules whose weight is another module's too, with that module in words. The input embedding itself is none of
    them: the methods that go into embeddings know whether they may adapt one that is tied.
    """
    embedding = model.get_input_embeddings()
    owners: dict[int, str] = {}
    shared: dict[str, str] = {}
    if (weight := embedding._parameters.get("weight")) is not None:
        owners[id(weight)] = "the input embedding"
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")  # the attribute may be computed, and another object each time
        if weight is None or module is embedding:
            continue
        if (owner := owners.setdefault(id(weight), name)) != name:
            shared[name] = owner
            if owner != "the input embedding":
                shared.setdefault(owner, name)
    return shared


def summary(names: Iterable[str]) -> dict[str, int]:
    """Targets counted by their name with layer numbers left out, for a log line."""
    counts: dict[str, int] = {}
    for name in names:
        short = re.sub(r"\.\d+(?=\.)", ".*", name)
        counts[short] = counts.get(short, 0) + 1
    return counts
