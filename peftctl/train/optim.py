"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from peftctl.errors import MachineError
from peftctl.recipe.schema import OptimizerName, ScheduleName, TrainSettings

FACTOR = "rate_factor"
GRADIENT = 4  # bytes of a trained parameter's gradient, in float32
# What an optimizer keeps of each, in bytes: AdamW two moments, sgd none, adafactor one for a whole row or column.
STATE: dict[OptimizerName, int] = {
    "adamw": 8, "paged_adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2, "sgd": 0, "adafactor": 0,
}  # fmt: skip


def training_bytes(settings: TrainSettings, trained: int) -> int:
    """What ``trained`` parameters take beside their values: their gradients, and the optimizer's state."""
    return trained * (GRADIENT + STATE[settings.optimizer])


def build_optimizer(settings: TrainSettings, parameters: Iterable[tuple[float, Any]]) -> Any:
    """The recipe's optimizer over the trained tensors, each with what the learning rate is multiplied by for it. Their
    rates are set before each step, by ``set_rate``.

    Raises MachineError where it needs a package that is not installed.
    """
    from torch import optim

    rate = settings.learning_rate
    builders: dict[OptimizerName, Callable[..., Any]] = {
        "adamw": lambda *args, **kwargs: optim.AdamW(*args, fused=True, **kwargs),
        "sgd": optim.SGD,
        "adafactor": optim.Adafactor,
        "adamw_8bit": lambda *args, **kwargs: _bitsandbytes(settings.optimizer).AdamW8bit(*args, **kwargs),
        "paged_adamw": lambda *args, **kwargs: _paged(settings.optimizer).PagedAdamW32bit(*args, **kwargs),
        "paged_adamw_8bit": lambda *args, **kwargs: _paged(settings.optimizer).PagedAdamW8bit(*args, **kwargs),
    }
    groups: dict[float, list[Any]] = {}
    for factor, parameter in parameters:
        groups.setdefault(factor, []).append(parameter)
    listed = [{"params": group, FACTOR: factor} for factor, group in groups.items()]
    return builders[settings.optimizer](listed, lr=rate, weight_decay=settings.weight_decay)


def in_order(optimizer: Any, model: Any) -> dict[str, Any]:
    """The optimizer's parameters by their names in ``model``, in its own order."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: parameter for group in optimizer.param_groups for parameter in group["params"]}


def set_rate(optimizer: Any, learning_rate: float) -> None:
    """The next update's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group[FACTOR]


def update(optimizer: Any, finite: Any) -> None:
    """One update, or none where ``finite``, a bool on the device, is false.

    torch's fused optimizers take the answer along and decide on the device, as they do for a gradient scaler; for the
    others it has to be waited for.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = (~finite).float()
        optimizer.step()
    elif finite:
        optimizer.step()


def schedule(name: ScheduleName, warmup_ratio: float, steps: int) -> Callable[[int], float]:
    """The share of the peak learning rate at each step, counted from 0.

    It rises in equal parts over the first ``warmup_ratio`` of the steps, the first of which is not zero, reaches 1
    at their end, and then stays (constant) or falls to 0 just after the last step (linear, cosine).
    """
    warmup = math.ceil(round(warmup_ratio * steps, 9))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        done = (step - warmup) / max(1, steps - warmup)
        if name == "linear":
            return 1.0 - done
        if name == "cosine":
            return 0.5 * (1.0 + math.cos(math.pi * done))
        return 1.0

    return factor


def _bitsandbytes(name: str) -> Any:
    try:
        from bitsandbytes import optim
    except ImportError as error:
        raise MachineError(f"train.optimizer: {name} needs the package bitsandbytes") from error
    return optim


def _paged(name: str) -> Any:
    """Its state is in memory that the GPU's driver moves to the host and back: there is none without a GPU."""
    import torch

    if not torch.cuda.is_available():
        raise MachineError(f"train.optimizer: {name} pages its state out of a GPU's memory, and there is no GPU")
    return _bitsandbytes(name)
