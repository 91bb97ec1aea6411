"""LoRA against its formula: h = W x + (alpha / rank) B A x."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peftctl.errors import VerificationError
from peftctl.methods import METHODS, DataFacts
from peftctl.methods.lora_settings import LoraSettings
from peftctl.model import attach, targets
from tests import tiny

FACTS = DataFacts(rows=8, tokens=100, supervised_tokens=50, longest=20, steps=3)
LORA = METHODS["lora"]
IDS = torch.tensor([[1, 2, 3, 4, 5]])


def put(model: Any, settings: LoraSettings) -> tuple[Any, dict[str, tuple[int, int]]]:
    torch.manual_seed(0)
    matched = targets.resolve(model, settings.targets)
    anatomy = attach.anatomy(model, matched)
    return attach.attach(model.eval(), LORA, settings, anatomy, "CAUSAL_LM", FACTS), matched


def test_alpha_is_twice_the_rank_unless_written() -> None:
    assert LORA.resolve(LoraSettings(rank=8)) == LoraSettings(rank=8, alpha=16.0)
    assert LORA.resolve(LoraSettings(rank=8, alpha=1.0)) == LoraSettings(rank=8, alpha=1.0)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2], ids=["llama", "gpt2"])
def test_it_starts_from_the_base_model_s_own_outputs(make: Any) -> None:
    model = make().eval()
    with torch.no_grad():
        before = model(IDS).logits
        wrapped, _ = put(model, LoraSettings(rank=4, alpha=8.0))
        assert torch.equal(wrapped(IDS).logits, before)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2], ids=["llama", "gpt2"])
def test_it_adds_alpha_over_rank_times_b_a_x(make: Any) -> None:
    settings = LoraSettings(rank=4, alpha=6.0)
    wrapped, matched = put(make(), settings)
    for name, (inputs, outputs) in matched.items():
        layer = wrapped.get_base_model().get_submodule(name)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        assert a.shape == (4, inputs)
        assert b.shape == (outputs, 4)
        torch.nn.init.normal_(b)
        x = torch.randn(3, inputs)
        with torch.no_grad():
            wanted = layer.base_layer(x).double() + 6 / 4 * x.double() @ a.double().T @ b.double().T
            # Float32 sums of up to 128 products.
            torch.testing.assert_close(layer(x).double(), wanted, rtol=1e-4, atol=1e-4)


def test_only_the_adapter_is_trained_in_float32_and_as_many_parameters_as_the_formula_says() -> None:
    settings = LoraSettings(rank=3, alpha=6.0, targets=("q_proj", "down_proj"))
    wrapped, matched = put(tiny.llama().to(torch.bfloat16).requires_grad_(False), settings)
    trained = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
    assert all("lora_" in name for name in trained)
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert {p.dtype for name, p in wrapped.named_parameters() if "lora_" not in name} == {torch.bfloat16}
    # Two layers of q_proj (32 to 32) and down_proj (64 to 32).
    assert (
        attach.trainable(wrapped)
        == LORA.parameters(settings, attach.anatomy(wrapped, matched))
        == 2 * 3 * (32 + 32 + 64 + 32)
    )
    assert attach.total(wrapped) == attach.trainable(wrapped) + sum(p.numel() for p in tiny.llama().parameters())


def test_on_the_shapes_of_a_real_model_it_goes_into_the_targets_and_nowhere_else() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        wrapped, matched = put(LlamaForCausalLM(config), LoraSettings(rank=2, alpha=4.0, targets=["q_proj", "up_proj"]))
    found = {name: tuple(p.shape) for name, p in wrapped.get_base_model().named_parameters() if p.requires_grad}
    wanted = {}
    for layer in range(16):
        query, up = f"model.layers.{layer}.self_attn.q_proj", f"model.layers.{layer}.mlp.up_proj"
        wanted |= {f"{query}.lora_A.default.weight": (2, 2048), f"{query}.lora_B.default.weight": (2048, 2)}
        wanted |= {f"{up}.lora_A.default.weight": (2, 2048), f"{up}.lora_B.default.weight": (8192, 2)}
    assert found == wanted
    counted = LORA.parameters(LoraSettings(rank=2), attach.anatomy(wrapped.get_base_model(), matched))
    assert counted == attach.trainable(wrapped) == 16 * 2 * (2048 + 2048 + 2048 + 8192) == 458_752


def test_the_seed_fixes_the_start() -> None:
    starts = []
    for _ in range(2):
        wrapped, _ = put(tiny.llama(), LoraSettings(rank=2, alpha=4.0))
        starts.append({name: p.detach().clone() for name, p in wrapped.named_parameters() if p.requires_grad})
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])


def test_another_number_of_trained_parameters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(LORA), "parameters", lambda *_: 7)
    with pytest.raises(VerificationError, match=r"method: lora trains 128 parameters, where its formula gives 7"):
        put(tiny.llama(), LoraSettings(rank=1, alpha=2.0, targets="q_proj"))


def test_a_method_put_elsewhere_is_refused() -> None:
    model = tiny.llama()
    matched = targets.resolve(model, ["q_proj"])
    matched.pop("model.layers.0.self_attn.q_proj")

    class Astray(type(LORA)):  # type: ignore[misc]
        def build(self, model: Any, settings: Any, targets: Any, peft_type: str, facts: DataFacts) -> Any:
            return super().build(model, settings, ["model.layers.0.self_attn.q_proj"], peft_type, facts)

    with pytest.raises(VerificationError) as error:
        attach.attach(model, Astray(), LoraSettings(alpha=32.0), attach.anatomy(model, matched), "CAUSAL_LM", FACTS)
    assert str(error.value) == (
        "method: lora was not put where it was meant to go: "
        "model.layers.0.self_attn.q_proj, model.layers.1.self_attn.q_proj"
    )
