"""Frozen linear layers in 4 or 8 bits, by bitsandbytes, and what has to be put right about it on CPUs."""

from __future__ import annotations

from typing import Any

from peftctl.errors import MachineError
from peftctl.recipe.schema import QuantizationSettings


def config(settings: QuantizationSettings, dtype: str) -> Any:
    """What transformers quantises by while it loads. Products are computed in ``dtype``.

    Raises MachineError where bitsandbytes is not installed.
    """
    import torch
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise MachineError("model.quantization: needs the package bitsandbytes", "pip install bitsandbytes")
    if settings.bits == 8:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=settings.type,
        bnb_4bit_use_double_quant=settings.double_quant,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )


def keep_weights(model: Any) -> None:
    """Let no forward pass change the weights of ``model``.

    On a CPU with AVX512_BF16 bitsandbytes packs a 4-bit layer's weight anew the first time it evaluates, for good, and
    the packed form has no gradients: training on after an evaluation learns from wrong ones without a word.
    """
    import bitsandbytes as bnb

    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
