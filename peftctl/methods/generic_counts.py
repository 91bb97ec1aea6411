"""How many parameters a method trains: by formula, or by having PEFT go into layers of the same shapes, empty ones."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from peftctl.methods.contract import Anatomy


def by_peft(peft_type: str, fields: Mapping[str, Any], anatomy: Anatomy) -> int:
    """What PEFT trains in bare layers of the anatomy's shapes, on the meta device."""
    biased = tuple(name for name in anatomy.targets if f"{name}.bias" in anatomy.beside)
    return _tried(peft_type, json.dumps(fields), tuple(anatomy.targets.items()), biased)


@cache  # a run asks before it builds, after, and for its manifest
def _tried(
    peft_type: str, fields: str, targets: tuple[tuple[str, tuple[int, int]], ...], biased: tuple[str, ...]
) -> int:
    import torch
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, get_peft_model

    skeleton = torch.nn.Module()
    for name, (inputs, outputs) in targets:
        at = skeleton
        *path, last = name.split(".")
        for part in path:
            if part not in at._modules:
                at.add_module(part, torch.nn.Module())
            at = at._modules[part]
        at.add_module(last, torch.nn.Linear(inputs, outputs, bias=name in biased, device="meta"))
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)]
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # of layers that are not the model's
        config = config_class(**json.loads(fields), target_modules=[name for name, _ in targets])
        made = get_peft_model(skeleton, config)
    return sum(parameter.numel() for parameter in made.parameters() if parameter.requires_grad)


def _adamss(settings: Any, anatomy: Anatomy) -> int:
    total = 0
    for inputs, outputs in anatomy.targets.values():
        rank = min(settings.r, inputs, outputs)
        total += settings.subspace_rank * (outputs + settings.num_subspaces * rank)
    return total


def _adaption_prompt(settings: Any, anatomy: Anatomy) -> int:
    layers: int = settings.adapter_layers or anatomy.layers
    length: int = settings.adapter_len
    return layers * (length * anatomy.width + 1)


def _boft(settings: Any, anatomy: Anatomy) -> int:
    total = 0
    for inputs, outputs in anatomy.targets.values():
        size = settings.boft_block_size or inputs // settings.boft_block_num
        total += inputs * size + outputs
    return total


def _cartridge(settings: Any, anatomy: Anatomy) -> int:
    trained: int = settings.num_virtual_tokens - settings.num_frozen_tokens
    return trained * anatomy.layers * 2 * anatomy.key_width


def _frod(settings: Any, anatomy: Anatomy) -> int:
    return sum(
        inputs + min(int(inputs * inputs * settings.sparse_rate), inputs * (inputs - 1))
        for inputs, _ in anatomy.targets.values()
    )


def _shadow(settings: Any, anatomy: Anatomy) -> int:
    return sum(math.prod(shape) for shape in anatomy.beside.values())


def _shira(settings: Any, anatomy: Anatomy) -> int:
    rank: int = settings.r
    return sum(rank * (inputs + outputs) for inputs, outputs in anatomy.targets.values())


def _trainable_tokens(settings: Any, anatomy: Anatomy) -> int:
    return len(settings.token_indices) * anatomy.width


def _unilora(settings: Any, anatomy: Anatomy) -> int:
    length: int = settings.theta_d_length
    return length


COUNTS: Mapping[str, Callable[[Any, Anatomy], int]] = {
    "adamss": _adamss,
    "adaption_prompt": _adaption_prompt,
    "boft": _boft,
    "cartridge": _cartridge,
    "frod": _frod,
    "shadow": _shadow,
    "shira": _shira,
    "trainable_tokens": _trainable_tokens,
    "unilora": _unilora,
}
