"""A LoRA adapter by itself as a GGUF file, which llama.cpp adds to a base model as it loads.

llama.cpp adds ``alpha / rank`` times the product of the two matrices of each tensor, with one ``alpha`` for all; where
a module has another scale, that is multiplied into its second matrix. Source: llama.cpp, src/llama-adapter.cpp.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError
from peftctl.gguf import families, tensors, writer
from peftctl.gguf.settings import head_size
from peftctl.merge.weights import Weights

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
# What an adapter's config may not say: it computes something else than a product of two matrices.
OTHERWISE = (
    "use_dora", "lora_bias", "modules_to_save", "alora_invocation_tokens", "layer_replication", "target_parameters",
    "trainable_token_indices", "use_qalora", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config",
)  # fmt: skip
INSTEAD = "--to gguf merges it into the whole model"


@dataclass(frozen=True)
class Pair:
    """A tensor's two matrices: ``keys`` of A [rank, inputs] and B [outputs, rank]; ``scale``: of their product."""

    keys: tuple[str, str]
    rank: int
    scale: float


def check(folder: Path) -> None:
    """Raises UsageError where what is in ``folder`` is no plain LoRA adapter."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    if (kind := config["peft_type"]) != "LORA":
        raise UsageError(f"gguf-lora: llama.cpp takes LoRA adapters alone (found {kind.lower()})", INSTEAD)
    if found := [name for name in OTHERWISE if config.get(name)]:
        raise UsageError(f"gguf-lora: llama.cpp's adapters have no place for {', '.join(found)}", INSTEAD)
    if config["bias"] != "none":
        raise UsageError(f"gguf-lora: llama.cpp's adapters have no place for biases (bias: {config['bias']})", INSTEAD)


def write(folder: Path, model_config: Any, path: Path, type_: str, about: Mapping[str, str]) -> None:
    """Write the adapter in ``folder`` to ``path``, its matrices in ``type_``.

    Raises UsageError naming a module that llama.cpp can add nothing to.
    """
    import numpy as np
    from gguf import GGUFWriter

    kind = families.family(model_config)
    with Weights([folder / WEIGHTS]) as weights:
        pairs = _pairs(folder, model_config, kind, weights)
        alpha = next(iter({pair.scale * pair.rank for pair in pairs.values()}))
        made = GGUFWriter(path, kind.architecture)
        try:
            fields = {f"general.{key}": value for key, value in about.items()}
            for key, value in (fields | {"adapter.type": "lora", "adapter.lora.alpha": float(alpha)}).items():
                writer.add(made, key, value)
            number = {"f32": np.float32, "f16": np.float16}[type_]
            for name, pair in pairs.items():
                down, up = (weights.read(key).float() for key in pair.keys)
                if kind.interleaved and tensors.TURNED.search(name):
                    up = writer.interleaved(up, head_size(model_config))
                if not math.isclose(alpha, pair.scale * pair.rank):
                    up = up * (pair.scale * pair.rank / alpha)
                made.add_tensor(f"{name}.lora_a", down.numpy().astype(number))
                made.add_tensor(f"{name}.lora_b", up.numpy().astype(number))
            made.write_header_to_file(path)
            made.write_kv_data_to_file()
            made.write_tensors_to_file()
        finally:
            made.close()


def _pairs(folder: Path, model_config: Any, kind: families.Family, weights: Weights) -> dict[str, Pair]:
    """Each pair by GGUF's name of the tensor that it is added to."""
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    modules: dict[str, dict[str, str]] = {}
    for key in weights.stored:
        match = KEY.fullmatch(key)
        if match is None:
            raise UsageError(f"gguf-lora: llama.cpp's adapters have no place for {key}", INSTEAD)
        modules.setdefault(match[1], {})[match[2]] = key
    names = tensors.names(model_config, kind, [f"{module}.weight" for module in modules])
    found = {}
    for name, (weight, *others) in names.items():
        module = weight.removesuffix(".weight")
        if others or ".experts." in module or len(modules[module]) != 2:
            raise UsageError(f"gguf-lora: llama.cpp's adapters have no place for {module}", INSTEAD)
        if name == "output.weight" and model_config.tie_word_embeddings:
            raise UsageError(f"gguf-lora: {module} is the embedding, too, which llama.cpp keeps once", INSTEAD)
        keys = (modules[module]["A"], modules[module]["B"])
        rank = weights.stored[keys[0]].shape[0]
        found[name] = Pair(keys, rank, _scale(config, module, rank))
    return found


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies the product by (peft, tuners/lora/layer.py, ``update_layer``)."""
    from peft.utils.other import get_pattern_key

    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key(patterns, module), config["lora_alpha"])
    return float(alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank)
