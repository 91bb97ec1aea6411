"""Methods that train some of the model's own parameters: those, and no others; what is kept, and put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftctl.errors import UsageError
from peftctl.methods import METHODS, BaseName, DataFacts
from peftctl.model import adapter, attach, targets
from peftctl.tasks import TASKS
from tests import tiny

TASK = TASKS["causal_lm"]

FACTS = DataFacts(rows=8, tokens=100, supervised_tokens=50, longest=20, steps=20)
IDS = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
KINDS = {"llama": tiny.llama, "qwen2": tiny.qwen2, "gpt2": lambda: tiny.gpt2(dropout=0.0)}
# Worked out by hand: width 32, inner 64, 2 layers, 264 words, 2 of 4 heads of 8 for keys.
LLAMA = 264 * 32 + 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32) + 32
COUNTS = {
    ("full", "llama"): LLAMA,
    ("full", "qwen2"): 264 * 32 + LLAMA + 2 * (32 + 16 + 16),
    ("full", "gpt2"): 264 * 32
    + 512 * 32
    + 2 * (32 * 96 + 96 + 32 * 32 + 32 + 2 * 32 * 128 + 128 + 32 + 4 * 32)
    + 2 * 32,
    ("ln_tuning", "llama"): 5 * 32,
    ("ln_tuning", "qwen2"): 5 * 32,
    ("ln_tuning", "gpt2"): 5 * 64,
    ("bitfit", "qwen2"): 2 * (32 + 16 + 16),
    ("bitfit", "gpt2"): 2 * (96 + 32 + 128 + 32 + 2 * 32) + 32,
}


def put(model: Any, name: str, **settings: Any) -> tuple[Any, Any]:
    method = METHODS[name]
    made = method.resolve(method.settings(name=name, **settings))
    model = model.eval().requires_grad_(False)
    wanted = method.choose(model) if made.wanted is None else made.wanted
    matched = targets.resolve(model, wanted, method.targetable(model))
    anatomy = attach.anatomy(model, matched, method.beside(model, made))
    return attach.attach(model, method, made, anatomy, "CAUSAL_LM", FACTS), made


def move(model: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(("name", "kind"), COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_selected_is_trained_in_float32_and_no_other(name: str, kind: str, dtype: Any) -> None:
    model, _ = put(KINDS[kind]().to(dtype), name)
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    assert attach.trainable(model) == COUNTS[name, kind]
    assert {p.dtype for p in trained.values()} == {torch.float32}
    frozen_linear = [
        p for key, p in model.named_parameters() if not p.requires_grad and "norm" not in key and "ln_" not in key
    ]
    assert {p.dtype for p in frozen_linear} <= {dtype}
    model(**INPUTS).logits.float().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in trained.values())


def test_bitfit_selects_biases_and_ln_tuning_norms() -> None:
    model, _ = put(tiny.gpt2(dropout=0.0), "bitfit")
    assert {name.rsplit(".", 1)[-1] for name in model.selected} == {"bias"}
    model, _ = put(tiny.llama(), "ln_tuning", targets=["model.layers.1.input_layernorm"])
    assert attach.trainable(model) == 32


@pytest.mark.parametrize(("name", "kind"), COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_in_the_base_s_dtype(name: str, kind: str, dtype: Any) -> None:
    model, _ = put(KINDS[kind]().to(dtype), name)
    seen = set()
    linear = [m for m in model.get_base_model().modules() if type(m).__name__ in ("Linear", "Conv1D")]
    for module in linear:
        module.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    model(**INPUTS)
    assert seen == {dtype}


@pytest.mark.parametrize(("name", "kind"), COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_read_back_bit_for_bit_on_an_untouched_base(
    name: str, kind: str, dtype: Any, tmp_path: Path
) -> None:
    method = METHODS[name]
    model, made = put(KINDS[kind]().to(dtype), name)
    move(model)
    trained = adapter.outputs(TASK, model, INPUTS)
    method.save(model, made, BaseName("base", None), tmp_path)
    base = KINDS[kind]().to(dtype)
    untouched = adapter.outputs(TASK, base, INPUTS)
    loaded = attach.load(base.requires_grad_(False), method, made, tmp_path)
    assert not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(adapter.outputs(TASK, loaded, INPUTS), trained)
    assert float((trained - untouched).abs().max()) > 0.1
    # Within rounding: norms that were trained are computed in float32 by autocast, others in the base's dtype.
    with loaded.disable_adapter():
        difference = float((adapter.outputs(TASK, loaded, INPUTS) - untouched).abs().max())
    assert difference <= (0 if dtype is torch.float32 else 0.05 * float(untouched.abs().max()))
    assert torch.equal(adapter.outputs(TASK, loaded, INPUTS), trained)


@pytest.mark.parametrize("name", ["full", "bitfit"])
def test_a_parameter_that_was_not_saved_is_missed_when_read_back(name: str, tmp_path: Path) -> None:
    """The model in which it was trained still has it: read back there, it must come from the file."""
    from safetensors.torch import load_file, save_file

    method = METHODS[name]
    model, made = put(tiny.gpt2(dropout=0.0), name)
    move(model)
    trained = adapter.outputs(TASK, model, INPUTS)
    method.save(model, made, BaseName("base", None), tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    kept = load_file(file)
    del kept["transformer.h.1.mlp.c_fc.bias"]
    save_file(kept, file, {"format": "pt"})
    read = adapter.outputs(TASK, adapter.reload(model, method, made, tmp_path), INPUTS)
    assert not torch.equal(read, trained)


def test_a_model_without_biases_is_refused_with_what_works() -> None:
    with pytest.raises(UsageError) as refused:
        put(tiny.llama(), "bitfit")
    assert refused.value.message == "method: bitfit has nothing to train, since LlamaForCausalLM has no biases"
    assert "ln_tuning" in str(refused.value.hint)
    with pytest.raises(UsageError, match="a Linear, which is no target of this method"):
        put(tiny.llama(), "ln_tuning", targets=["q_proj"])


def test_a_full_model_is_one_that_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, made = put(tiny.llama(), "full")
    move(model)
    METHODS["full"].save(model, made, BaseName("base", None), tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.dtype == torch.float32
    assert torch.equal(adapter.outputs(TASK, plain, INPUTS), adapter.outputs(TASK, model, INPUTS))
