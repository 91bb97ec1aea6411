"""A method put into a model, and the proof that it went where it was meant to and nowhere else."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError, VerificationError
from peftctl.methods import METHODS, Anatomy, DataFacts, Method, MethodSettings
from peftctl.methods.parts import head_shapes, heads
from peftctl.model import types
from peftctl.tables import table

MIXED = "peftctl_mixed"
MOST = 5
HEADS = "heads.safetensors"


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

    targets, dtype, whole = list(anatomy.targets), model.dtype, head_shapes(model)
    try:
        peft_model = method.build(model, settings, targets, peft_type, facts)
    except (TypeError, ValueError, NotImplementedError) as error:  # PEFT's ways of refusing a model
        reason = str(error).strip().split("\n")[0]
        raise UsageError(
            f"method: {method.name} cannot go into {type(model).__name__}: {reason}",
            _able(getattr(model.config, "model_type", "")),
        ) from error
    train_heads(peft_model, heads(model))
    types.hand_on(peft_model)
    changed = set(getattr(peft_model, "targeted_module_names", ()))  # a method without targets has none
    beside = {name for name in changed if any(key.startswith(f"{name}.") for key in anatomy.beside)}
    if odd := sorted((changed ^ set(targets)) - beside):
        raise VerificationError(f"method: {method.name} was not put where it was meant to go: {', '.join(odd[:5])}")
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)
    if method.trains_own_layers(settings) or whole:
        products_in(dtype, peft_model.get_base_model())
    found, wanted = trainable(peft_model), expected(method, settings, anatomy, whole)
    if found != wanted:
        raise VerificationError(f"method: {method.name} trains {found} parameters, where its formula gives {wanted}")
    return peft_model


def expected(method: Method, settings: MethodSettings, anatomy: Anatomy, whole: Mapping[str, tuple[int, ...]]) -> int:
    """How many parameters are trained: the method's, by its formula, and those of the heads that are not among them.

    ``whole``: the parameters of the heads, see ``head_shapes``.
    """
    beyond = sum(math.prod(shape) for name, shape in whole.items() if name not in anatomy.beside)
    return method.parameters(settings, anatomy) + beyond


def train_heads(peft_model: Any, names: Sequence[str]) -> None:
    """Have the heads trained where PEFT, which cannot with every method, has not seen to it."""
    base = peft_model.get_base_model()
    for name in names:
        module = base.get_submodule(name)
        if not any(parameter.requires_grad for parameter in module.parameters()):
            module.requires_grad_(True)


def _able(family: str) -> str:
    """The first of the methods that were seen to work on ``family``; "" where none was tried on it."""
    seen = table("capabilities")["methods"]
    works = [name for name in METHODS if name in seen and seen[name]["families"].get(family) == "yes"]
    return f"seen to work on {family}: {', '.join(works[:MOST])}" if works else ""


def load(model: Any, method: Method, settings: MethodSettings, folder: Path) -> Any:
    """``model``, a base as it comes, with what the method saved in ``folder``."""
    dtype, whole = model.dtype, heads(model)
    peft_model = method.load(model, settings, folder)
    types.hand_on(peft_model)
    if (folder / HEADS).exists():
        _fill_heads(peft_model.get_base_model(), folder / HEADS)
    if method.trains_own_layers(settings) or whole:
        products_in(dtype, peft_model.get_base_model())
    return peft_model


def save_heads(peft_model: Any, folder: Path) -> None:
    """Write those heads that the method has not saved with what it trains."""
    from safetensors.torch import save_file

    base, saved = peft_model.get_base_model(), getattr(peft_model, "selected", ())
    left = {
        f"{name}.{last}": parameter.detach().contiguous()
        for name in heads(base)
        if not hasattr(base.get_submodule(name), "modules_to_save")
        for last, parameter in base.get_submodule(name).named_parameters()
        if f"{name}.{last}" not in saved
    }
    if left:
        save_file(left, folder / HEADS)


def _fill_heads(base: Any, file: Path) -> None:
    from safetensors.torch import load_file

    parameters = dict(base.named_parameters())
    for name, value in load_file(file).items():
        parameters[name].data = value.to(parameters[name].device)


def products_in(dtype: Any, model: Any) -> None:
    """Have the forward pass multiply in ``dtype`` although some of the model's own parameters are float32."""
    import torch

    if dtype == torch.float32 or getattr(model.forward, MIXED, False):
        return
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if type(module).__name__.endswith("Norm") and len({parameter.dtype for parameter in own}) > 1:
            for parameter in own:  # a norm multiplies in one dtype
                parameter.data = parameter.data.to(torch.float32)
    plain = model.forward

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(model.device.type, dtype):
            return plain(*args, **kwargs)

    setattr(forward, MIXED, True)
    model.forward = forward


def anatomy(
    model: Any, targets: Mapping[str, tuple[int, int]], beside: Mapping[str, tuple[int, ...]] | None = None
) -> Anatomy:
    """What the method's formula is told of ``model``, by its config, and of what it trains ``beside`` its targets."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None) or 0  # a model without attention has none
    head = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    return Anatomy(targets, config.hidden_size, config.num_hidden_layers, key_heads * head, beside or {})


def weight_bytes(model: Any) -> int:
    """What the model's parameters take in memory, shared ones once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def trainable(model: Any) -> int:
    """How many parameters are trained."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def total(model: Any) -> int:
    """How many parameters the model has, shared ones once. Some in 4 bits are kept two in a number."""
    states = ((parameter, getattr(parameter, "quant_state", None)) for parameter in model.parameters())
    return sum(math.prod(state.shape) if state is not None else parameter.numel() for parameter, state in states)
