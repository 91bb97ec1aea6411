"""The facts of a model that follow from its config alone."""

from __future__ import annotations

from typing import Any

from peftctl.inspection import groups, match, tree
from peftctl.inspection.blueprint import Blueprint
from peftctl.inspection.counts import counts
from peftctl.inspection.coverage import REFUSALS, Resolver, choices
from peftctl.inspection.facts import Architecture
from peftctl.methods import METHODS

# The setting of a method that can adapt one tensor for all experts of a layer.
TENSORS = "target_parameters"


def architecture(
    blueprint: Blueprint, *, with_tree: bool = False, pattern: str | None = None, by_peft: bool = False
) -> Architecture:
    """What there is to know; with ``by_peft`` also of methods that PEFT has to count, which takes a minute.

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
        counts=counts(resolver, defaults, by_peft=by_peft),
        experts_by=tuple(name for name, method in METHODS.items() if TENSORS in method.settings.model_fields),
        left_alone=resolver.left_alone,
        tree=tree.tree(model) if with_tree else (),
        match=match.match(model, pattern) if pattern is not None else None,
    )


def _number(config: Any, name: str) -> int:
    found = getattr(config, name, None)
    return found if isinstance(found, int) else 0
