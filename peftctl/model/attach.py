"""A method put into a model, and the proof that it went where it was meant to and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftctl.errors import UsageError, VerificationError
from peftctl.methods import Anatomy, DataFacts, Method, MethodSettings
from peftctl.tables import table


def attach(
    model: Any,
    method: Method,
    settings: MethodSettings,
    anatomy: Anatomy,
    peft_type: str,
    facts: DataFacts,
) -> Any:
    """The PEFT model, its trainable tensors float32. The caller has seeded torch.

    Raises VerificationError where other modules were changed, or another number of parameters is trained, than
    the recipe and the method's formula say.
    """
    import torch

    targets = list(anatomy.targets)
    try:
        peft_model = method.build(model, settings, targets, peft_type, facts)
    except (TypeError, ValueError, NotImplementedError) as error:  # PEFT's ways of refusing a model
        reason = str(error).strip().split("\n")[0]
        raise UsageError(f"method: {method.name} cannot go into {type(model).__name__}: {reason}", _able()) from error
    changed = set(getattr(peft_model, "targeted_module_names", ()))  # a method without targets has none
    if changed != set(targets):
        odd = sorted(changed ^ set(targets))
        raise VerificationError(f"method: {method.name} was not put where it was meant to go: {', '.join(odd[:5])}")
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    found, expected = trainable(peft_model), method.parameters(settings, anatomy)
    if found != expected:
        raise VerificationError(f"method: {method.name} trains {found} parameters, where its formula gives {expected}")
    return peft_model


def _able() -> str:
    """What the methods were seen to work on."""
    seen = table("capabilities")["methods"]
    return "seen to work: " + "; ".join(
        f"{name} on {', '.join(family for family, said in able['families'].items() if said == 'yes')}"
        for name, able in seen.items()
    )


def anatomy(model: Any, targets: Mapping[str, tuple[int, int]]) -> Anatomy:
    """What the method's formula is told of ``model``, by its config."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return Anatomy(targets, config.hidden_size, config.num_hidden_layers, key_heads * head)


def trainable(model: Any) -> int:
    """How many parameters are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def total(model: Any) -> int:
    """How many parameters the model has, the method's included, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
