"""A base model's weights as training on a quantised base saw them: quantised once more, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from peftctl.merge.source import Source
from peftctl.merge.values import Values
from peftctl.model import quantize, skeleton


def quantised(values: Values, config: Any, source: Source) -> Values:
    """``values`` with those weights rounded that ``model.quantization`` rounds when the model is loaded."""
    names = _names(config, source)
    return replace(values, rounded=frozenset(names), as_trained=_rounding(names, source))


def _names(config: Any, source: Source) -> dict[str, bool]:
    """The weights that are quantised, by parameter; whether each is stored the other way round."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers import AutoHfQuantizer

    settings = source.model.quantization
    assert settings is not None
    quantizer = AutoHfQuantizer.from_config(quantize.config(settings, source.model.dtype), pre_quantized=False)
    plain, packed = skeleton.empty(config, source.task), skeleton.empty(config, source.task)
    before = {name: type(module) for name, module in plain.named_modules()}
    quantizer.preprocess_model(model=packed, device_map=None)
    return {
        f"{name}.weight": issubclass(before[name], Conv1D)
        for name, module in packed.named_modules()
        if name in before and type(module) is not before[name]
    }


def _rounding(transposed: dict[str, bool], source: Source) -> Callable[[str, Any], Any]:
    import bitsandbytes as bnb
    import torch

    settings, dtype = source.model.quantization, getattr(torch, source.model.dtype)
    assert settings is not None

    def rounded(name: str, value: Any) -> Any:
        value = value.to(dtype)
        value = value.T.contiguous() if transposed[name] else value
        if settings.bits == 8:
            packed = bnb.nn.Int8Params(value, requires_grad=False, has_fp16_weights=False).to("cpu")
            back = bnb.functional.int8_vectorwise_dequant(packed.data, packed.SCB).to(dtype)
        else:
            packed = bnb.nn.Params4bit(
                value, requires_grad=False, compress_statistics=settings.double_quant, quant_type=settings.type
            ).to("cpu")
            back = bnb.functional.dequantize_4bit(packed.data, packed.quant_state)
        return back.T.contiguous() if transposed[name] else back

    return rounded
