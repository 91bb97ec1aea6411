"""Frozen linear layers in 4 or 8 bits, by bitsandbytes, and what has to be put right about it on CPUs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from peftctl.errors import MachineError
from peftctl.recipe.schema import QuantizationSettings


def config(settings: QuantizationSettings, dtype: str, whole: Sequence[str] = ()) -> Any:
    """What transformers quantises by while it loads, all but the modules ``whole``, by default the output head.
    Products are computed in ``dtype``.

    Raises MachineError where bitsandbytes is not installed.
    """
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise MachineError("model.quantization: needs the package bitsandbytes", "pip install bitsandbytes")
    return BitsAndBytesConfig(**_fields(settings, dtype, whole))


def code(settings: QuantizationSettings, dtype: str, whole: Sequence[str] = ()) -> str:
    """The arguments of the same config as Python, where torch has been imported."""
    return ", ".join(
        f"{name}={json.dumps(value) if isinstance(value, str) else value}"  # a dtype is written as torch's
        for name, value in _fields(settings, dtype, whole).items()
    )


def _fields(settings: QuantizationSettings, dtype: str, whole: Sequence[str]) -> dict[str, Any]:
    """What transformers' config is made of."""
    import torch

    apart = {"llm_int8_skip_modules": list(whole)} if whole else {}  # of 4 bits, too
    if settings.bits == 8:
        return {"load_in_8bit": True, **apart}
    return {
        **apart,
        "load_in_4bit": True,
        "bnb_4bit_quant_type": settings.type,
        "bnb_4bit_use_double_quant": settings.double_quant,
        "bnb_4bit_compute_dtype": getattr(torch, dtype),
    }


def keep_weights(model: Any) -> None:
    """Let no forward pass change the weights of ``model``.

    On a CPU with AVX512_BF16 bitsandbytes packs a 4-bit layer's weight anew the first time it evaluates, for good, and
    the packed form has no gradients: training on after an evaluation learns from wrong ones without a word.
    """
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False


def bring_to(model: Any, dtype: Any) -> None:
    """Have a model that was quantised as it came compute in ``dtype``: its 4-bit layers, and what is not quantised in
    it, but for what a model keeps in float32. transformers leaves both as the checkpoint has them.
    """
    import torch

    for module in model.modules():
        if hasattr(module, "compute_type_is_set"):  # a 4-bit layer of bitsandbytes, which need not be there for others
            module.compute_dtype, module.compute_type_is_set = dtype, True
    apart = [*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())]
    for name, parameter in model.named_parameters():
        wide = parameter.dtype == torch.float32 and any(part in name.split(".") for part in apart)
        # bitsandbytes may keep packed numbers in the room of floating-point ones, as a kind of parameter of its own.
        if type(parameter) is torch.nn.Parameter and parameter.is_floating_point() and not wide:
            parameter.data = parameter.data.to(dtype)
