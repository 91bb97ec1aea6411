"""Every variant of LoRA: how much it trains and in what, saved and read back, by plain PEFT too, and merged."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from peftctl.fast.equal import tolerance
from peftctl.methods.contract import BaseName
from peftctl.model import adapter, attach
from tests.unit.lora_cases import IDS, LORA, MODELS, NO_MERGE, VARIANTS, fill, logits, put

DTYPES = (torch.float32, torch.bfloat16)
# A sum in another order, of two layers' worth of products of logits' size.
ROUNDED = 2**0.5 * tolerance(torch.float32)


# Tried at every save; the others at every push.
QUICK = ("dora", "pissa", "embedding", "whole_tied", "tokens_tied", "experts", "experts_some", "many")
SOME = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]


def made(variant: str, dtype: torch.dtype = torch.float32) -> tuple[Any, Any, Any]:
    kind, settings, _ = VARIANTS[variant]
    return put(MODELS[kind](), dtype, **settings)


def close(found: Any, wanted: Any, dtype: torch.dtype) -> bool:
    return bool((found - wanted).abs().max() <= 2**0.5 * tolerance(dtype) * wanted.abs().max())


@pytest.mark.parametrize("variant", VARIANTS)
def test_as_many_parameters_are_trained_as_the_formula_says(variant: str) -> None:
    model, settings, anatomy = made(variant)
    wanted = VARIANTS[variant][2]
    assert LORA.parameters(settings, anatomy) == wanted
    assert attach.trainable(model) == wanted
    assert model.get_nb_trainable_parameters()[0] == wanted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", SOME)
def test_what_is_trained_is_float32_and_gets_a_gradient_and_logits_keep_the_base_s_dtype(
    variant: str, dtype: torch.dtype
) -> None:
    model, _, _ = made(variant, dtype)
    fill(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    found = model(input_ids=IDS, use_cache=False).logits
    assert found.dtype == dtype
    found.float().square().sum().backward()
    assert {name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()} == set()


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("variant", SOME)
def test_what_is_saved_gives_the_trained_logits_back_and_off_it_is_the_base(
    variant: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    kind, _, _ = VARIANTS[variant]
    base = MODELS[kind]().to(dtype).eval()
    own = logits(base)
    model, settings, _ = put(copy.deepcopy(base), dtype, **VARIANTS[variant][1])
    fill(model)
    trained = logits(model)
    assert float((trained - own).abs().max()) > 0.1
    with model.disable_adapter():
        assert torch.equal(logits(model), own)
    LORA.save(model, settings, BaseName("base", None), tmp_path)
    read = adapter.reload(model, LORA, settings, tmp_path)
    if LORA.rounds(settings):
        assert close(logits(read), trained, dtype)
    else:
        assert torch.equal(logits(read), trained)
    assert not any(parameter.requires_grad for parameter in read.parameters())
    with read.disable_adapter():
        assert torch.equal(logits(read), own)


def plain(base: Any, folder: Path) -> Any:
    with warnings.catch_warnings():  # what PEFT says of experts' ranks and of biases, to whoever loads them
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys|`lora_bias=True` was passed")
        return PeftModel.from_pretrained(base, folder).eval()


@pytest.mark.parametrize("variant", SOME)
def test_plain_peft_loads_it_on_the_untouched_base_and_merges_it(variant: str, tmp_path: Path) -> None:
    kind, _, _ = VARIANTS[variant]
    model, settings, _ = made(variant)
    fill(model)
    trained = logits(model)
    LORA.save(model, settings, BaseName("base", None), tmp_path)
    read = plain(MODELS[kind]().eval(), tmp_path)
    assert close(logits(read), trained, torch.float32)
    if variant in NO_MERGE:
        with pytest.raises(RuntimeError, match="Impossible to merge LoRA with `lora_bias=True`"):
            read.merge_and_unload()
        return
    merged = read.merge_and_unload()
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    assert close(logits(merged), trained, torch.float32)


@pytest.mark.parametrize("variant", ["pissa_conv1d", "pissa_niter_4", "many"])
def test_a_start_from_weights_is_saved_as_a_plain_lora_of_twice_the_rank(variant: str, tmp_path: Path) -> None:
    model, settings, anatomy = made(variant)
    LORA.save(model, settings, BaseName("base", None), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == 8
    assert config["init_lora_weights"] is True
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    pattern = settings.rank_pattern or {}
    for name, (inputs, outputs) in anatomy.targets.items():
        rank = 2 * pattern.get(name.rsplit(".", 1)[-1], 4)
        assert tensors[f"base_model.model.{name}.lora_A.weight"].shape == (rank, inputs)
        assert tensors[f"base_model.model.{name}.lora_B.weight"].shape == (outputs, rank)
    # Untrained it changes nothing: what it adds is A and B less what they started from.
    read = plain(MODELS[VARIANTS[variant][0]]().eval(), tmp_path)
    assert close(logits(read), logits(MODELS[VARIANTS[variant][0]]().eval()), torch.float32)


def test_the_same_settings_are_saved_as_the_same_bytes(tmp_path: Path) -> None:
    left = []
    for number in range(2):
        model, settings, _ = made("experts")
        folder = tmp_path / str(number)
        LORA.save(model, settings, BaseName("base", None), folder)
        left.append((folder / "adapter_config.json").read_bytes())
    assert left[0] == left[1]
    assert json.loads(left[0])["target_parameters"] == sorted(json.loads(left[0])["target_parameters"])


# What the fast products may take over.


@pytest.mark.parametrize("variant", ["plain", "rslora", "patterns", "orthogonal", "norms", "tokens_tied"])
def test_a_plain_update_is_said_to_be_one(variant: str) -> None:
    model, _, anatomy = made(variant)
    fill(model)
    for name, (inputs, _) in anatomy.targets.items():
        layer = model.get_base_model().get_submodule(name)
        update = LORA.low_rank(layer)
        assert update is not None
        x = torch.randn(3, inputs, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            wanted = layer.base_layer(x) + update.scale * (x @ update.down.T) @ update.up.T
            torch.testing.assert_close(layer(x), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "variant",
    ["dora", "dora_conv1d", "dora_embedding", "pissa", "olora", "bias", "bias_conv1d", "many", "experts_only"],
)
def test_what_is_more_than_a_plain_update_is_not(variant: str) -> None:
    model, _, _ = made(variant)
    assert {LORA.low_rank(module) for module in model.get_base_model().modules()} == {None}
