"""Checkpoints that are quantised as they come: which can be trained, and how they are loaded. All from config.json."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from peftctl.errors import MachineError, UsageError
from peftctl.methods import METHODS, Method, MethodSettings
from peftctl.model import identity
from peftctl.nearest import nearest
from peftctl.recipe.schema import ModelSettings
from peftctl.tables import table

BITSANDBYTES = "bitsandbytes"
MOST = 3
PACKED = {"U8": 2, "I32": 8}  # 4-bit numbers in one of safetensors' types
HINT = "or name the model's weights before they were quantised; model.quantization can quantise those"


@dataclass(frozen=True)
class Scheme:
    """A way of quantising. ``packages``: what transformers needs for it, by pip's name, importable with _ for -.

    ``layers``: PEFT's own layers for it, in a module of this name beside each method's; "" where weights are unpacked
    while they are loaded, and any method goes into them. ``tried``: whether a test trains on it.
    """

    packages: tuple[str, ...] = ()
    layers: str = ""
    tried: bool = True


SCHEMES: Mapping[str, Scheme] = {
    BITSANDBYTES: Scheme((BITSANDBYTES,), "bnb"),
    "fp8": Scheme(),
    "mxfp8": Scheme(),
    "mxfp4": Scheme(),
    "compressed-tensors": Scheme(("compressed-tensors",)),
    "gptq": Scheme(("optimum", "gptqmodel"), "gptq", tried=False),
    "awq": Scheme(("gptqmodel",), "awq", tried=False),
    "aqlm": Scheme(("aqlm",), "aqlm", tried=False),
    "torchao": Scheme(("torchao",), "torchao"),
}
# Schemes that transformers knows and that cannot be trained on here, where there is more to say than that.
UNABLE = {"hqq": "transformers 5.23 no longer loads it"}


@dataclass(frozen=True)
class Quantised:
    """What config.json says of how the weights are kept; ``bits`` where bitsandbytes keeps them, else 0."""

    name: str
    bits: int
    said: Mapping[str, Any]

    @property
    def scheme(self) -> Scheme | None:
        """None where it cannot be trained on."""
        return SCHEMES.get(self.name)

    @property
    def unpacked(self) -> bool:
        """Whether the weights are plain ones once they are loaded."""
        return self.scheme is not None and not self.scheme.layers

    def __str__(self) -> str:
        return f"{self.name}, {self.bits} bits" if self.bits else self.name


def found(config: Any) -> Quantised | None:
    """How the checkpoint of ``config`` is quantised; None where it is not."""
    if (holder := _holder(config)) is None:
        return None
    said = _as_dict(holder.quantization_config)
    for bits in (4, 8):
        if said.get(f"load_in_{bits}bit"):
            return Quantised(BITSANDBYTES, bits, said)
    return Quantised(str(said.get("quant_method")), 0, said)


def check(
    config: Any, name: str, model: ModelSettings, method: Method, settings: MethodSettings, note: Callable[[str], None]
) -> None:
    """Judge the checkpoint ``name`` before its weights are read; ``note`` hears what is done about it.

    Raises UsageError where it cannot be trained on, or the method does not go into its layers; MachineError where a
    package is missing.
    """
    kept = found(config)
    if kept is None:
        return
    if model.quantization is not None:
        raise UsageError(
            f"model.quantization: {name} is quantised already ({kept}); allowed: to leave model.quantization out", HINT
        )
    scheme = _known(kept, name)
    lacking = [each for each in scheme.packages if not _there(each.replace("-", "_"))]
    if lacking:
        are = "packages" if len(lacking) > 1 else "package"
        raise MachineError(
            f"model.name: {name} is quantised ({kept}), which needs the {are} {', '.join(lacking)}",
            f"pip install {' '.join(lacking)}; {HINT}",
        )
    if kept.unpacked:
        note(f"{name} is quantised ({kept}): its weights are unpacked to {model.dtype} while they are loaded")
    elif reason := _why_not(kept, method, settings):
        raise UsageError(f"method.name: {method.name} does not work on {name} ({kept}): {reason}", HINT)
    if not scheme.tried:
        note(f"{name} is quantised ({kept}), on which peftctl was not tried: all that is known is what this run checks")


def prepare(config: Any) -> Quantised | None:
    """Have the checkpoint of ``config`` unpacked while it is loaded, where it is one of those that are."""
    kept = found(config)
    if kept is not None and kept.unpacked:
        _holder(config).quantization_config = {**kept.said, "dequantize": True}
    return kept


def weight_bytes(config: Any, folder: Path, dtype: str) -> int:
    """What the weights in ``folder`` take in memory: what they take on disk, unless they are unpacked to ``dtype``."""
    kept = found(config)
    if kept is None or not kept.unpacked:
        return identity.weight_bytes(folder)
    headers = (identity.header(file) for file in identity.weight_files(folder))
    tensors = [entry for header in headers for name, entry in header.items() if name != "__metadata__"]
    numbers: int = sum(prod(entry["shape"]) * PACKED.get(entry["dtype"], 1) for entry in tensors)
    return numbers * (4 if dtype == "float32" else 2)


def _holder(config: Any) -> Any:
    """The config, or the part of it, that says how weights are kept; None where none does. As transformers looks."""
    for part in (config, config.get_text_config(decoder=True)):
        if getattr(part, "quantization_config", None) is not None:
            return part
    return None


def _as_dict(said: Any) -> dict[str, Any]:
    return dict(said) if isinstance(said, Mapping) else dict(said.to_dict())


def _known(kept: Quantised, name: str) -> Scheme:
    """Raises UsageError where nothing can be trained on it."""
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as KNOWN

    allowed = f"allowed: weights that are not quantised, or {', '.join(SCHEMES)}"
    if "quant_method" not in kept.said and not kept.bits:
        raise UsageError(f"model.name: the quantization_config of {name} names no quant_method; {allowed}", HINT)
    if kept.name == BITSANDBYTES and not kept.bits:
        raise UsageError(f"model.name: the quantization_config of {name} says neither load_in_4bit nor load_in_8bit")
    if kept.scheme is None:
        if kept.name not in KNOWN:
            # transformers would load the packed numbers as if they were the weights
            near = nearest(kept.name, list(SCHEMES))
            raise UsageError(
                f"model.name: {name} is quantised by {kept.name!r}, which transformers does not know; {allowed}"
                + (f"; did you mean {near}?" if near else ""),
                HINT,
            )
        reason = UNABLE.get(kept.name, "transformers runs it, and does not train on it")
        raise UsageError(f"model.name: {name} is quantised ({kept}): {reason}; {allowed}", HINT)
    if kept.name == "torchao" and not re.search("8weight", str(kept.said.get("quant_type")).lower()):
        raise UsageError(
            f"model.name: {name} is quantised by torchao, of which weights in 8 bits alone can be trained on", HINT
        )
    return kept.scheme


def _why_not(kept: Quantised, method: Method, settings: MethodSettings) -> str:
    """Why the method does not go into layers that are kept so, with those that do, or ""."""
    if kept.bits and (clash := method.clash(settings, kept.bits)):
        setting, reason, allowed = clash
        return f"method.{setting}: {reason}; allowed: {allowed}"
    if not (reason := _layers_lack(kept, method, settings)):
        return ""
    others = [other.name for other in _others(method) if not _layers_lack(kept, other, None)]
    return f"{reason}; allowed: method {' or '.join(others[:MOST])}" if others else reason


def _layers_lack(kept: Quantised, method: Method, settings: MethodSettings | None) -> str:
    """What the method lacks for layers that are kept so, or ""; ``settings`` None stands for its defaults."""
    if kept.bits:
        seen = table("capabilities")["methods"].get(method.name)
        said = seen["quantization"][str(kept.bits)] if seen else "yes"  # what was not tried, trying will tell
        return "" if said == "yes" else str(said)
    made = settings if settings is not None else _defaults(method)
    if made is not None and made.wanted == () and not method.trains_own_layers(made):
        return ""  # it leaves the layers as they are
    assert kept.scheme is not None
    layers = f"peft.tuners.{method.peft_type.lower()}.{kept.scheme.layers}"
    return "" if method.peft_type and _there(layers) else f"PEFT has no {method.name} layers for it"


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of what it would be in
        return False


def _defaults(method: Method) -> MethodSettings | None:
    """None where the method has settings that a recipe must say."""
    return None if method.settings.needed else method.settings.model_validate({"name": method.name})


def _others(method: Method) -> Sequence[Method]:
    """The other methods, those most used first."""
    return [each for each in METHODS.values() if each.name != method.name]
