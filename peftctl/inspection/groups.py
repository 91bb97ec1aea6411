"""The layers of a model in groups: one for all that do the same thing in every block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from peftctl.inspection import roles
from peftctl.inspection.facts import Group
from peftctl.model.targets import linear_shapes

VISION, AUDIO, PROJECTOR = "vision", "audio", "projector"
KINDS = {
    **dict.fromkeys(roles.ATTENTION, "attention"),
    **dict.fromkeys(roles.FEED_FORWARD, "feed-forward"),
    roles.EXPERTS: "experts",
    roles.ROUTER: "router",
    roles.EMBEDDING: "embeddings",
    roles.HEAD: "head",
}


@dataclass(frozen=True)
class _Layer:
    role: str
    part: str
    name: str
    shape: tuple[int, ...]
    type: str
    linear: bool
    tied: bool


def groups(model: Any) -> tuple[Group, ...]:
    """Linear layers, experts that are one tensor, embeddings and the head, by role and then in the model's order."""
    found: dict[_Layer, list[int]] = {}
    for layer, parameters in _layers(model):
        found.setdefault(layer, []).append(parameters)
    made = [
        Group(
            layer.role, layer.part, layer.name, layer.shape, len(counts), layer.type, layer.linear, sum(counts),
            layer.tied,
        )
        for layer, counts in found.items()
    ]  # fmt: skip
    return tuple(sorted(made, key=lambda group: (_place(group.part), roles.ORDER.index(group.role))))


def _place(part: str) -> int:
    return ("", PROJECTOR, VISION, AUDIO).index(part)


def _layers(model: Any) -> Iterator[tuple[_Layer, int]]:
    """Each layer, with how many parameters are its own."""
    from torch import nn

    linear, head = linear_shapes(model), _head(model)
    seen: set[int] = set()
    for name, module in model.named_modules():
        short = roles.collapsed(name)
        own = dict(module.named_parameters(recurse=False))
        tied = id(own.get("weight")) in seen
        seen |= {id(parameter) for parameter in own.values()}
        count = sum(parameter.numel() for parameter in own.values())
        kind, part = type(module).__name__, roles.part(short)
        if name in linear:
            role = roles.HEAD if module is head else of_linear(short)
            yield _Layer(role, part, short, linear[name], kind, True, tied), count
        elif isinstance(module, nn.Embedding):
            yield _Layer(roles.EMBEDDING, part, short, tuple(module.weight.shape), kind, False, tied), count
        else:
            for last, parameter in own.items():
                if is_experts(short, kind, parameter):
                    shape = tuple(parameter.shape)
                    yield _Layer(roles.EXPERTS, part, f"{short}.{last}", shape, kind, False, False), parameter.numel()


def of_linear(short: str) -> str:
    """The role of a linear layer; one of an expert's own has that of experts."""
    return roles.EXPERTS if ".experts." in f".{short}." else roles.role(short)


def is_experts(short: str, kind: str, parameter: Any) -> bool:
    """Whether a parameter holds the weights of all experts of a layer, [experts, ., .]."""
    return parameter.dim() == 3 and "expert" in f"{short}.{kind}".lower()


def experts(model: Any) -> list[str]:
    """The parameters that each hold the weights of all experts of a layer, by name."""
    return [
        f"{name}.{last}"
        for name, module in model.named_modules()
        for last, parameter in module.named_parameters(recurse=False)
        if is_experts(roles.collapsed(name), type(module).__name__, parameter)
    ]


def _head(model: Any) -> Any:
    with suppress(AttributeError, NotImplementedError):
        return model.get_output_embeddings()
    return None


def by_kind(model: Any) -> dict[str, int]:
    """How many parameters there are of each kind, largest first; shared ones once, where they come first."""
    from torch import nn

    linear, head = linear_shapes(model), _head(model)
    counts: dict[str, int] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        short = roles.collapsed(name)
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            part, type_name = roles.part(short), type(module).__name__
            if part:
                kind = part
            elif name in linear:
                kind = KINDS.get(roles.HEAD if module is head else of_linear(short), "other")
            elif is_experts(short, type_name, parameter):
                kind = "experts"
            elif isinstance(module, nn.Embedding):
                kind = "embeddings"
            elif roles.role(short) == roles.ROUTER:
                kind = "router"
            else:
                kind = "norms" if "Norm" in type_name else "other"
            counts[kind] = counts.get(kind, 0) + parameter.numel()
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def tied(model: Any) -> tuple[tuple[str, ...], ...]:
    """The names under which a parameter stands more than once."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return tuple(tuple(shared) for shared in names.values() if len(shared) > 1)
