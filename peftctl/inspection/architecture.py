"""The facts of a model that follow from its config alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftctl.inspection import belongs, groups, match, tree
from peftctl.inspection.belongs import Stored
from peftctl.inspection.blueprint import Blueprint
from peftctl.inspection.counts import counts
from peftctl.inspection.coverage import REFUSALS, Default, Resolver, choices
from peftctl.inspection.facts import Architecture, Count
from peftctl.methods import METHODS

# The setting of a method that can adapt one tensor for all experts of a layer.
TENSORS = "target_parameters"


def architecture(
    blueprint: Blueprint,
    *,
    with_tree: bool = False,
    pattern: str | None = None,
    by_peft: bool = False,
    stored: Stored | None = None,
) -> Architecture:
    """What there is to know; with ``by_peft`` also of methods that PEFT has to count, which takes a minute. ``stored``:
    the tensors of the folder's weights, to be held against the model's. What no task is there for has no counts.

    Raises UsageError where the pattern is of no use.
    """
    model, config = blueprint.model, blueprint.model.config
    text = config.get_text_config()
    resolver = Resolver(model)
    defaults = {name: resolver.default(method) for name, method in METHODS.items()}
    kinds = groups.by_kind(model)
    try:
        covered = choices(resolver, defaults)
    except REFUSALS:  # it has no linear layers
        covered = ()
    return Architecture(
        class_name=type(model).__name__,
        model_type=config.model_type,
        tasks=blueprint.tasks,
        dtype=str(config.dtype or "").removeprefix("torch."),
        layers=_number(text, "num_hidden_layers"),
        width=_number(text, "hidden_size"),
        parameters=sum(kinds.values()),
        kinds=kinds,
        tied=groups.tied(model),
        groups=groups.groups(model),
        choices=covered,
        counts=_counts(blueprint, resolver, defaults, by_peft=by_peft) if blueprint.tasks else (),
        experts_by=tuple(name for name, method in METHODS.items() if TENSORS in method.settings.model_fields),
        left_alone=resolver.left_alone,
        tree=tree.tree(model) if with_tree else (),
        match=match.match(model, pattern) if pattern is not None else None,
        strange=belongs.strange(model, stored) if stored else (),
    )


def _counts(
    blueprint: Blueprint, resolver: Resolver, defaults: Mapping[str, Default], *, by_peft: bool
) -> tuple[Count, ...]:
    """Counts of the model that training builds."""
    if blueprint.trained is not None:
        resolver = Resolver(blueprint.trained)
        defaults = {name: resolver.default(method) for name, method in METHODS.items()}
    return counts(resolver, defaults, by_peft=by_peft)


def _number(config: Any, name: str) -> int:
    found = getattr(config, name, None)
    return found if isinstance(found, int) else 0
