"""Bases in 4 and 8 bits: what they take, that evaluating changes nothing, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from bitsandbytes.nn import Linear4bit, Linear8bitLt

import peftctl
from peftctl import atomic
from peftctl.errors import MachineError, RecipeError, UsageError
from peftctl.methods import METHODS, OWN, DataFacts
from peftctl.model import adapter, attach, load, quantize, targets
from peftctl.model.locate import Base
from peftctl.recipe import check
from peftctl.recipe.schema import ModelSettings, QuantizationSettings
from peftctl.tables import table
from peftctl.tasks import TASKS
from tests import jobs, tiny

TASK = TASKS["causal_lm"]

IDS = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
WIDE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("models") / "wide", tiny.llama(**WIDE))


def quantised(folder: Path, dtype: str = "float32", **settings: Any) -> Any:
    base = Base(str(folder), folder, "folder")
    model = ModelSettings(name=str(folder), quantization=QuantizationSettings(**settings))
    return load.load_model(base, model, TASKS["causal_lm"], dtype)


def layers(model: Any, kind: type) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, kind)}


def size(layer: Any) -> int:
    """Bytes of a quantised layer's weight, with all that it takes to read it."""
    total: int = layer.weight.numel() * layer.weight.element_size()
    for tensor in layer.weight.quant_state.as_dict(packed=True).values():
        total += tensor.numel() * tensor.element_size()
    return total


def test_four_bits_with_double_quant_take_little_more_than_four_bits(wide: Path) -> None:
    model = quantised(wide, "bfloat16")
    found = layers(model, Linear4bit)
    assert {name.rsplit(".", 1)[-1] for name in found} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    taken = sum(size(layer) for layer in found.values())
    in_bfloat16 = sum(2 * layer.in_features * layer.out_features for layer in found.values())
    assert 0.25 * in_bfloat16 < taken <= 0.27 * in_bfloat16
    plain = sum(size(layer) for layer in layers(quantised(wide, "bfloat16", double_quant=False), Linear4bit).values())
    assert plain > 0.28 * in_bfloat16
    assert model.lm_head.weight.dtype == model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_the_settings_reach_the_layers(wide: Path) -> None:
    for settings, kind, nested in (({}, "nf4", True), ({"type": "fp4", "double_quant": False}, "fp4", False)):
        for layer in layers(quantised(wide, "bfloat16", **settings), Linear4bit).values():
            assert layer.weight.quant_state.quant_type == kind
            assert layer.weight.quant_state.nested is nested
            assert layer.compute_dtype == torch.bfloat16
            assert not layer.weight.requires_grad
    found = layers(quantised(wide, "bfloat16", bits=8), Linear8bitLt)
    assert len(found) == 7
    assert {layer.weight.dtype for layer in found.values()} == {torch.int8}


def adapted(model: Any) -> Any:
    method = METHODS["lora"]
    settings = method.resolve(method.settings(name="lora", rank=4))
    anatomy = attach.anatomy(model, targets.resolve(model, ["all-linear"]))
    torch.manual_seed(0)
    model = attach.attach(model, method, settings, anatomy, "CAUSAL_LM", DataFacts(8, 100, 50, 20, 3))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def gradient(model: Any) -> torch.Tensor:
    model.train()
    model(IDS, labels=IDS).loss.backward()
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_are_the_same_bits_before_and_after_an_evaluation(wide: Path, dtype: str, bits: int) -> None:
    model = adapted(quantised(wide, dtype, bits=bits))
    before = gradient(model)
    assert float(before.norm()) > 0
    model.eval()
    with torch.no_grad():
        model(IDS)
    assert torch.equal(gradient(model), before)


def test_no_evaluation_packs_a_weight_anew(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU that has AVX512_BF16, or is taken for one that has, bitsandbytes would. The guard is what stops it."""
    from bitsandbytes.nn import modules

    packed = []

    def pack(data: Any, state: Any, *_: Any, **__: Any) -> Any:
        packed.append(data)
        return data, state

    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    monkeypatch.setattr(modules, "_convert_weight_packed_for_cpu", pack)
    with monkeypatch.context() as without:
        without.setattr(quantize, "keep_weights", lambda _: None)
        model = quantised(wide)
    assert {layer.support_avx512bf16_for_cpu for layer in layers(model, Linear4bit).values()} == {True}
    with torch.no_grad():
        model(IDS)
        assert len(packed) == 7
        packed.clear()
        model = quantised(wide)
        assert [layer.support_avx512bf16_for_cpu for layer in layers(model, Linear4bit).values()] == [False] * 7
        model.eval()(IDS)
    assert packed == []


RECIPE = (
    "model: {{name: org/model, quantization: {{bits: {bits}}}}}\n"
    "data: {{train: rows.jsonl}}\nmethod: {method}\noutput: runs/x\n"
)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("method", [name for name in OWN if not METHODS[name].settings.needed])
def test_check_and_train_refuse_the_same_methods(
    method: str, bits: int, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE.format(bits=bits, method=method))
    if table("capabilities")["methods"][method]["quantization"][str(bits)] == "yes":
        check(tmp_path / "r.yaml")
        return
    with pytest.raises(RecipeError) as refused:
        check(tmp_path / "r.yaml")
    [fault] = refused.value.faults
    assert (fault.place.line, fault.key) == (3, "method.name")
    assert fault.also is not None
    assert (fault.also.line, fault.also.column) == (1, 26)
    assert fault.problem.startswith(f"{method} does not work on {bits} bits: ")
    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError) as stopped:
        jobs.train(tmp_path, tiny_model, model={"quantization": {"bits": bits}}, method={"name": method})
    assert stopped.value.message == f"method.name: {fault.problem}; allowed: {fault.allowed}"
    others = "" if method == "full" else "quantization.bits 8, "
    assert fault.allowed == f"{others}a base that is not quantised, or method lora, ia3 or adalora"


@pytest.mark.parametrize(("name", "value"), [("type", "fp4"), ("double_quant", "false")])
def test_eight_bits_have_no_type(name: str, value: str, tmp_path: Path) -> None:
    text = RECIPE.format(bits=f"8, {name}: {value}", method="lora")
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError) as refused:
        check(tmp_path / "r.yaml")
    assert [fault.problem for fault in refused.value.faults] == ["has no effect on 8 bits"]
    assert refused.value.faults[0].key == f"model.quantization.{name}"
    (tmp_path / "r.yaml").write_text(text.replace("bits: 8", "bits: 4"))
    check(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("method", "bits"),
    [
        ("lora", 4),
        *(
            pytest.param(method, bits, marks=pytest.mark.slow)
            for method in ("lora", "ia3", "adalora", "prompt_tuning", "p_tuning", "prefix_tuning")
            for bits in (4, 8)
            if (method, bits) != ("lora", 4)
        ),
    ],
)
def test_a_quantised_run_learns_and_says_so(method: str, bits: int, tmp_path: Path, tiny_model: Path) -> None:
    settings = {"rank": 4} if method in ("lora", "adalora") else {"tokens": 4} if method != "ia3" else {}
    run, events = jobs.train(
        tmp_path, tiny_model, model={"quantization": {"bits": bits}}, method={"name": method, **settings},
        data={"eval": {"path": "train.jsonl"}}, eval={"every": 1}, train={"epochs": 3, "learning_rate": 3e-2},
    )  # fmt: skip
    facts = jobs.manifest(run)
    first = next(event for event in events if event["event"] == "eval")
    assert facts["metrics"]["loss"] < first["loss"]
    assert facts["verified"]["reload"]["verified"] == "yes"
    written = {"bits": bits, "type": "nf4", "double_quant": True}
    assert facts["quantization"] == written
    assert yaml.safe_load((run / "resolved.yaml").read_text())["model"]["quantization"] == written
    loaded = peftctl.load(run)
    kind = Linear4bit if bits == 4 else Linear8bitLt
    assert len(layers(loaded.model, kind)) == 14
    if bits == 4:
        assert not any(layer.support_avx512bf16_for_cpu for layer in layers(loaded.model, kind).values())
    assert loaded.held_out()(loaded.model) == pytest.approx(facts["metrics"], rel=1e-4)
    assert isinstance(loaded.generate("odd", max_new_tokens=3), str)


@pytest.mark.parametrize(
    ("quantization", "dtype"),
    [
        ({"bits": 4}, "float32"),
        ({"bits": 4, "type": "fp4", "double_quant": False}, "bfloat16"),
        ({"bits": 8}, "float32"),
    ],
)
def test_the_card_s_code_gives_the_logits_that_were_verified(
    quantization: dict[str, Any], dtype: str, tmp_path: Path, wide: Path
) -> None:
    """The base is quantised as the adapter knew it; on the plain one the logits are others."""
    from peft import AutoPeftModelForCausalLM

    run, _ = jobs.train(tmp_path, wide, model={"quantization": quantization, "dtype": dtype})
    code = (run / "adapter" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    found: dict[str, Any] = {}
    exec(code.replace("path/to/this/folder", str(run / "adapter")), found)
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    said = adapter.outputs(TASK, found["model"], inputs)
    meant = adapter.outputs(TASK, peftctl.load(run).model, inputs)
    tolerance = 2 * adapter.EPS if dtype == "float32" else 2.0**-7
    assert float((said - meant).abs().max()) <= tolerance * float(meant.abs().max())
    plain = adapter.outputs(
        TASK, AutoPeftModelForCausalLM.from_pretrained(run / "adapter", dtype=getattr(torch, dtype)), inputs
    )
    assert float((plain - meant).abs().max()) > 4 * tolerance * float(meant.abs().max())


def test_a_base_in_four_bits_is_counted_by_its_weights_and_not_by_its_bytes(tmp_path: Path, tiny_model: Path) -> None:
    plain, packed = (
        next(event for event in jobs.train(tmp_path, tiny_model, name, model=model)[1] if event["event"] == "model")
        for name, model in (("plain", {}), ("packed", {"quantization": {"bits": 4}}))
    )
    assert packed["parameters"] == plain["parameters"] == sum(p.numel() for p in tiny.llama().parameters())


def test_a_run_that_is_not_quantised_says_so(tmp_path: Path, tiny_model: Path) -> None:
    run, _ = jobs.train(tmp_path, tiny_model)
    assert jobs.manifest(run)["quantization"] is None
    assert layers(peftctl.load(run).model, Linear4bit) == {}


def test_evaluating_a_quantised_run_in_the_middle_changes_nothing(tmp_path: Path, tiny_model: Path) -> None:
    sections: dict[str, Any] = {"model": {"quantization": {"bits": 4}}, "data": {"eval": {"count": 4}}}
    plain, _ = jobs.train(tmp_path, tiny_model, "plain", **sections)
    watched, _ = jobs.train(tmp_path, tiny_model, "watched", **sections, eval={"every": 1})
    assert atomic.inventory(plain / "adapter") == atomic.inventory(watched / "adapter")


def test_without_bitsandbytes_it_is_said_what_to_install(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(MachineError) as refused:
        jobs.train(tmp_path, tiny_model, model={"quantization": {"bits": 4}})
    assert refused.value.message == "model.quantization: needs the package bitsandbytes"
    assert refused.value.hint == "pip install bitsandbytes"
