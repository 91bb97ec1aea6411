"""What LoRA's A and B start from, beside PEFT's default.

PiSSA (Meng et al. 2024, https://arxiv.org/abs/2404.02948) and OLoRA (Büyükakyüz 2024, https://arxiv.org/abs/2406.01775)
take A and B from W and their product from W itself, so that training starts from the base's own outputs:

    h = (W - s B0 A0) x + s B A x        A = A0, B = B0 at the start, s the scale

Here W is left alone and the fixed part joins the update, which is the same sum with one rounding less in 16 bits:

    h = W x + s (B A - B0 A0) x = W x + s [B | -B0] [A ; A0] x

so the base answers as itself where the adapter is off, and what is saved is a plain LoRA of twice the rank.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from peftctl.atomic import write_json
from peftctl.errors import UsageError
from peftctl.methods.lora_settings import FROM_WEIGHTS, InitName
from peftctl.methods.peft_method import CONFIG

FIXED = "start"  # the name of the second, fixed update in PEFT's layers
TRAINED = "default"  # PEFT's name for the first


def begin(layers: Mapping[str, Any], init: InitName) -> None:
    """Give A and B of PEFT's LoRA ``layers``, by name, their start, in float32. Raises UsageError where a weight has
    fewer singular values than the rank."""
    import torch

    for name, layer in layers.items():
        a, b = layer.lora_A[TRAINED].weight, layer.lora_B[TRAINED].weight
        with torch.no_grad():
            if init == "gaussian":
                a.data = (torch.randn(a.shape) / layer.r[TRAINED]).to(a.device)
            elif init == "orthogonal":
                a.data, b.data = _orthogonal(a, b)
            elif init in FROM_WEIGHTS:
                weight = layer.get_base_layer().weight
                if not weight.is_floating_point() or weight.numel() != layer.in_features * layer.out_features:
                    raise UsageError(f"method.init: {init} starts from weights, and those of {name} are quantised")
                if (most := min(layer.in_features, layer.out_features)) < layer.r[TRAINED]:
                    raise UsageError(
                        f"method.init: {init} has no more of {name} than rank {most} (found {layer.r[TRAINED]})",
                        "a lower rank, or one for it in rank_pattern",
                    )
                a.data, b.data = _from_weight(layer, init)
                _fix(layer, a.data, b.data)


def measure(layers: Iterable[Any]) -> None:
    """Let DoRA's magnitudes be the lengths of W in float32; PEFT takes them in W's 16 bits, which is a start beside
    the base's own outputs."""
    import torch
    from peft.utils.integrations import dequantize_module_weight

    for layer in layers:
        weight = dequantize_module_weight(layer.get_base_layer()).data.to(torch.float32)
        magnitude = layer.lora_magnitude_vector[TRAINED]
        magnitude.weight.data = torch.linalg.norm(weight.T if magnitude.fan_in_fan_out else weight, dim=1)


def _orthogonal(a: Any, b: Any) -> tuple[Any, Any]:
    """A [rank, inputs] and B [outputs, rank] of two halves of an orthogonal matrix, so that B A = 0: PEFT's
    ``orthogonal_init``, https://datta0.github.io/posts/rethink-lora-init/."""
    import torch

    rank = len(a)
    halves, _ = torch.linalg.qr(torch.randn(rank, rank))
    down = torch.randn(a.shape[1], rank // 2) @ halves[0::2] / 10
    up = torch.randn(len(b), rank // 2) @ halves[1::2] / 10
    return down.T.contiguous().to(a.device), up.to(b.device)


def _from_weight(layer: Any, init: InitName) -> tuple[Any, Any]:
    """A0 [rank, inputs] and B0 [outputs, rank] of the layer's own weight, in float32."""
    import torch

    rank, scale = layer.r[TRAINED], layer.scaling[TRAINED]
    weight = layer.get_base_layer().weight.data.to(torch.float32)
    if layer.fan_in_fan_out:
        weight = weight.T
    if init == "olora":
        q, r = torch.linalg.qr(weight)
        return r[:rank].contiguous(), q[:, :rank].contiguous()
    if init == "pissa":
        u, values, vh = torch.linalg.svd(weight, full_matrices=False)
        u, values, vh = u[:, :rank], values[:rank], vh[:rank]
    else:
        u, values, v = torch.svd_lowrank(weight, rank, niter=4)
        vh = v.T
    root = (values / scale).sqrt()
    return (root[:, None] * vh).contiguous(), (u * root).contiguous()


def _fix(layer: Any, a: Any, b: Any) -> None:
    """Add -B0 A0 to the layer as a second update, without parameters."""
    from torch import nn

    layer.lora_A[FIXED], layer.lora_B[FIXED] = _fixed(a), _fixed(-b)
    layer.lora_dropout[FIXED] = nn.Identity()
    for name in ("r", "lora_alpha", "scaling", "use_rslora", "use_dora"):
        values = getattr(layer, name)
        values[FIXED] = values[TRAINED]
    layer.lora_bias[FIXED] = False
    layer.set_adapter([TRAINED, FIXED])


def _fixed(weight: Any) -> Any:
    """A linear layer whose weight [outputs, inputs] is a copy of ``weight``, and nobody's parameter."""
    from torch import nn

    outputs, inputs = weight.shape
    layer = nn.Linear(inputs, outputs, bias=False, device="meta")
    del layer.weight
    layer.register_buffer("weight", weight.clone(), persistent=False)
    return layer


def join(base_model: Any, folder: Path, rslora: bool) -> None:
    """Write the two updates of each layer as one of twice the rank into the adapter that PEFT left in ``folder``, which
    holds the first."""
    import torch
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for name, layer in base_model.named_modules():
        if FIXED not in getattr(layer, "lora_A", ()):
            continue
        for part, along in (("lora_A", 0), ("lora_B", 1)):
            key = f"base_model.model.{name}.{part}.weight"
            tensors[key] = torch.cat([tensors[key], getattr(layer, part)[FIXED].weight.cpu()], along).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / CONFIG).read_text("utf-8"))
    alpha = 2**0.5 if rslora else 2
    config |= {"r": 2 * config["r"], "lora_alpha": alpha * config["lora_alpha"]}
    config["rank_pattern"] = {name: 2 * rank for name, rank in config["rank_pattern"].items()}
    config["alpha_pattern"] = {name: alpha * number for name, number in config["alpha_pattern"].items()}
    write_json(folder / CONFIG, config)
