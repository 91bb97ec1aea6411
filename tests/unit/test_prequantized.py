"""Checkpoints that are quantised as they come: what is judged from config.json, and how the rest is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import peftctl
from peftctl.errors import MachineError, PeftctlError, UsageError
from peftctl.methods import METHODS
from peftctl.model import load, prequantized
from peftctl.model.locate import Base
from peftctl.recipe.schema import ModelSettings, QuantizationSettings
from peftctl.tasks import TASKS
from tests import jobs, tiny

FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic", "fmt": "e4m3"}
MXFP4 = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens"]}


def say(folder: Path, quantization: Any) -> Path:
    """Put a quantization_config into the folder's config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    return folder


def bnb(folder: Path, bits: int, dtype: str = "bfloat16", room: str = "uint8") -> Path:
    """A tiny Llama, quantised by bitsandbytes and saved so, which computes in ``dtype`` by its own account; its 4-bit
    numbers are packed into those of the type ``room``.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny.save(folder / "plain")
    settings = (
        BitsAndBytesConfig(load_in_8bit=True)
        if bits == 8
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=getattr(torch, dtype),
            bnb_4bit_quant_storage=getattr(torch, room),
        )
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder / "plain", quantization_config=settings, dtype=getattr(torch, dtype)
    )
    return tiny.save(folder / "quantised", model)


def fp8(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A tiny Llama in 8-bit floating-point blocks, and the weights that those stand for."""
    from safetensors.torch import load_file, save_file

    say(tiny.save(folder), FP8)
    packed, stands_for = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if "proj" not in name:
            packed[name] = stands_for[name] = weight
            continue
        rows, columns = weight.shape
        blocks = weight.reshape(rows // 16, 16, columns // 16, 16)
        scale = blocks.abs().amax((1, 3)) / 448  # the largest number that e4m3 has
        numbers = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
        packed[name] = numbers.reshape(rows, columns)
        packed[f"{name}_scale_inv"] = scale
        stands_for[name] = (numbers.float() * scale[:, None, :, None]).reshape(rows, columns)
    save_file(packed, folder / "model.safetensors", {"format": "pt"})
    return folder, stands_for


def mxfp4(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """A tiny gpt-oss whose experts are 4-bit numbers with an exponent for every 32, and what those stand for."""
    from safetensors.torch import load_file, save_file
    from transformers import GptOssConfig, GptOssForCausalLM

    sizes = {**tiny.SIZES, "hidden_size": 64, "head_dim": 16, "bos_token_id": 257}
    torch.manual_seed(0)
    config = GptOssConfig(**sizes, num_local_experts=4, num_experts_per_tok=2, initializer_range=0.2)
    say(tiny.save(folder, GptOssForCausalLM(config)), MXFP4)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    packed, stands_for = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            packed[name] = stands_for[name] = weight
            continue
        experts, inputs, outputs = weight.shape
        numbers = torch.randint(0, 16, (experts, outputs, inputs // 32, 32), dtype=torch.uint8)
        exponents = torch.randint(122, 126, (experts, outputs, inputs // 32), dtype=torch.uint8)
        packed[f"{name}_blocks"] = numbers[..., ::2] | (numbers[..., 1::2] << 4)
        packed[f"{name}_scales"] = exponents
        values = table[numbers.long()] * torch.exp2(exponents.float() - 127)[..., None]
        stands_for[name] = values.reshape(experts, outputs, inputs).transpose(1, 2)
    save_file(packed, folder / "model.safetensors", {"format": "pt"})
    return folder, stands_for


def loaded(folder: Path, dtype: str = "float32") -> Any:
    return load.load_model(
        Base(str(folder), folder, "folder"), ModelSettings(name=str(folder)), TASKS["causal_lm"], dtype
    )


def config(quantization: Any, **inside: Any) -> Any:
    """A Llama's config that says how its weights are kept; ``inside``: says it in a config of text within."""
    from transformers import LlamaConfig, LlavaConfig

    if inside:
        return LlavaConfig(text_config=LlamaConfig(**tiny.SIZES, quantization_config=quantization))
    return LlamaConfig(**tiny.SIZES, quantization_config=quantization)


def judged(quantization: Any, method: str = "lora", on_top: int | None = None, **inside: Any) -> list[str]:
    """What is noted of a checkpoint. Raises what it is refused with."""
    notes: list[str] = []
    model = ModelSettings(
        name="org/model", dtype="float32", quantization=QuantizationSettings(bits=on_top) if on_top else None
    )
    found = METHODS[method]
    settings = found.resolve(found.settings(name=method))
    prequantized.check(config(quantization, **inside), "org/model", model, found, settings, notes.append)
    return notes


def refused(kind: type[PeftctlError], *args: Any, **kwargs: Any) -> PeftctlError:
    with pytest.raises(kind) as error:
        judged(*args, **kwargs)
    assert type(error.value) is kind
    return error.value


def pretend(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Have packages that are not here found."""
    there = prequantized._there
    monkeypatch.setattr(prequantized, "_there", lambda name: name in packages or there(name))


def test_plain_weights_are_none_of_its_business() -> None:
    assert prequantized.found(config(None)) is None
    assert judged(None, on_top=4) == []


@pytest.mark.parametrize(
    ("quantization", "name", "bits"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", 4),
        ({"load_in_8bit": True}, "bitsandbytes", 8),
        ({"quant_method": "gptq", "bits": 4}, "gptq", 0),
        (FP8, "fp8", 0),
    ],
)
@pytest.mark.parametrize("inside", [{}, {"text": True}])
def test_what_config_json_says_is_found_wherever_it_says_it(
    quantization: dict[str, Any], name: str, bits: int, inside: dict[str, Any]
) -> None:
    found = prequantized.found(config(quantization, **inside))
    assert found is not None
    assert (found.name, found.bits) == (name, bits)


@pytest.mark.parametrize(
    ("scheme", "packages"),
    [
        ("gptq", ["optimum", "gptqmodel"]),
        ("awq", ["gptqmodel"]),
        ("aqlm", ["aqlm"]),
        ("torchao", ["torchao"]),
        ("compressed-tensors", ["compressed-tensors"]),
        ("bitsandbytes", ["bitsandbytes"]),
    ],
)
def test_a_package_that_is_missing_is_named_with_what_to_type(
    scheme: str, packages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prequantized, "_there", lambda _: False)
    extra = {"load_in_4bit": True} if scheme == "bitsandbytes" else {"quant_type": "Int8WeightOnlyConfig"}
    error = refused(MachineError, {"quant_method": scheme, **extra})
    assert error.message.endswith(f"needs the package{'s' if len(packages) > 1 else ''} {', '.join(packages)}")
    assert error.hint.startswith(f"pip install {' '.join(packages)}; or ")


@pytest.mark.parametrize("scheme", ["hqq", "fbgemm_fp8", "auto-round", "vptq", "nvfp4", "quanto", "bitnet"])
def test_what_cannot_be_trained_on_is_refused_with_what_can(scheme: str) -> None:
    error = refused(UsageError, {"quant_method": scheme})
    assert error.message.startswith(f"model.name: org/model is quantised ({scheme}): transformers ")
    assert "allowed: weights that are not quantised, or bitsandbytes, fp8, " in error.message
    assert error.hint == prequantized.HINT


def test_a_scheme_that_transformers_would_pass_over_is_refused() -> None:
    """It would load the packed numbers as if they were the weights, and say so in its log alone."""
    error = refused(UsageError, {"quant_method": "mxfp5"})
    assert "is quantised by 'mxfp5', which transformers does not know" in error.message
    assert error.message.endswith("; did you mean mxfp8?")
    assert "names no quant_method" in refused(UsageError, {"bits": 4}).message
    assert "neither load_in_4bit nor load_in_8bit" in refused(UsageError, {"quant_method": "bitsandbytes"}).message


@pytest.mark.parametrize(
    "quantization", [FP8, {"quant_method": "gptq"}, {"load_in_4bit": True}, {"load_in_8bit": True}]
)
def test_a_base_is_not_quantised_twice(quantization: dict[str, Any]) -> None:
    error = refused(UsageError, quantization, on_top=4)
    assert error.message.startswith("model.quantization: org/model is quantised already (")
    assert error.message.endswith("; allowed: to leave model.quantization out")


def test_packed_weights_take_any_method_once_they_are_unpacked() -> None:
    for method in ("lora", "loha", "full", "prompt_tuning"):
        assert judged(FP8, method) == [
            "org/model is quantised (fp8): its weights are unpacked to float32 while they are loaded"
        ]


def test_layers_of_bitsandbytes_take_the_methods_that_the_table_has_seen_on_them() -> None:
    assert judged({"load_in_4bit": True}, "lora") == []
    assert judged({"load_in_8bit": True}, "loha") == []
    error = refused(UsageError, {"load_in_4bit": True}, "loha")
    assert error.message.startswith("method.name: loha does not work on org/model (bitsandbytes, 4 bits): ")
    assert "; allowed: method lora or ia3 or adalora" in error.message
    assert "quantization.bits" not in error.message


def test_other_layers_take_the_methods_that_have_layers_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "optimum", "gptqmodel")
    for method in ("lora", "adalora", "prompt_tuning", "prefix_tuning"):
        (said,) = judged({"quant_method": "gptq"}, method)
        assert said.startswith("org/model is quantised (gptq), on which peftctl was not tried")
    error = refused(UsageError, {"quant_method": "gptq"}, "loha")
    assert error.message == (
        "method.name: loha does not work on org/model (gptq): PEFT has no loha layers for it; "
        "allowed: method lora or adalora or prompt_tuning"
    )
    # awq has no layers of AdaLoRA's, and no method trains what is packed
    assert "PEFT has no adalora layers" in refused(UsageError, {"quant_method": "awq"}, "adalora").message
    for method in ("full", "bitfit", "ln_tuning"):
        assert f"PEFT has no {method} layers" in refused(UsageError, {"quant_method": "gptq"}, method).message


def test_torchao_is_trained_on_in_eight_bits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "torchao")
    eight = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}
    four = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig", "_data": {}}}}
    assert judged(eight) == []
    assert "weights in 8 bits alone" in refused(UsageError, four).message


@pytest.mark.parametrize(
    ("quantization", "sections", "said"),
    [
        ({"quant_method": "hqq"}, {}, "is quantised (hqq)"),
        ({"quant_method": "gptq"}, {}, "needs the packages optimum, gptqmodel"),
        (FP8, {"model": {"quantization": {"bits": 4}}}, "is quantised already (fp8)"),
        ({"load_in_4bit": True}, {"method": {"name": "loha", "rank": 4}}, "loha does not work on"),
    ],
)
def test_training_refuses_before_rows_are_encoded_or_weights_are_read(
    quantization: dict[str, Any], sections: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftctl.train import job

    folder = say(tiny.save(tmp_path / "model"), quantization)
    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("weights were loaded"))
    monkeypatch.setattr(job, "supplied", lambda *_: pytest.fail("rows were encoded"))
    with pytest.raises(PeftctlError) as error:
        jobs.train(tmp_path, folder, **sections)
    assert said in error.value.message
    assert not (tmp_path / "run" / "resolved.yaml").exists()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_eight_bit_floats_become_exactly_the_numbers_they_stand_for(dtype: str, tmp_path: Path) -> None:
    folder, stands_for = fp8(tmp_path / "model")
    wanted = getattr(torch, dtype)
    state = loaded(folder, dtype).state_dict()
    for name, weight in stands_for.items():
        assert state[name].dtype == wanted, name
        assert torch.equal(state[name], weight.to(wanted)), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_bit_floats_become_exactly_the_numbers_they_stand_for(dtype: str, tmp_path: Path) -> None:
    folder, stands_for = mxfp4(tmp_path / "model")
    wanted = getattr(torch, dtype)
    state = loaded(folder, dtype).state_dict()
    for name, weight in stands_for.items():
        assert state[name].dtype == wanted, name
        assert torch.equal(state[name], weight.to(wanted)), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_bit_layers_compute_in_the_recipes_dtype_and_keep_their_weights(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU that has AVX512_BF16, or is taken for one that has, evaluating would pack weights anew."""
    from bitsandbytes.nn import Linear4bit, modules

    monkeypatch.setattr(modules, "has_avx512bf16", lambda: True)
    other = "bfloat16" if dtype == "float32" else "float32"
    model = loaded(bnb(tmp_path, 4, other), dtype)
    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    assert len(layers) == 14
    assert {layer.compute_dtype for layer in layers} == {getattr(torch, dtype)}
    assert {layer.support_avx512bf16_for_cpu for layer in layers} == {False}
    assert {layer.weight.dtype for layer in layers} == {torch.uint8}
    assert model.get_input_embeddings().weight.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("room", ["uint8", "bfloat16"])
def test_a_checkpoint_saved_in_four_bits_is_loaded_as_it_was_saved(room: str, tmp_path: Path) -> None:
    """Bit for bit, against transformers' own way; nothing is quantised anew."""
    from transformers import AutoModelForCausalLM

    folder = bnb(tmp_path, 4, "float32", room)
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        assert torch.equal(loaded(folder)(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("make", [fp8, mxfp4])
def test_the_room_that_unpacked_weights_take_is_known_before_they_are_read(
    make: Any, dtype: str, tmp_path: Path
) -> None:
    from transformers import AutoConfig

    folder, _ = make(tmp_path / "model")
    taken = sum(each.numel() * each.element_size() for each in loaded(folder, dtype).parameters())
    estimate = prequantized.weight_bytes(AutoConfig.from_pretrained(folder), folder, dtype)
    assert taken <= estimate < 1.1 * taken


def test_the_room_of_other_weights_is_what_they_take_on_disk(tmp_path: Path) -> None:
    from transformers import AutoConfig

    for folder in (tiny.save(tmp_path / "plain"), bnb(tmp_path / "four", 4)):
        estimate = prequantized.weight_bytes(AutoConfig.from_pretrained(folder), folder, "float32")
        assert estimate == (folder / "model.safetensors").stat().st_size


MAKERS = {
    "bnb4": lambda folder: bnb(folder, 4),
    "bnb8": lambda folder: bnb(folder, 8),
    "fp8": lambda folder: fp8(folder)[0],
    "mxfp4": lambda folder: mxfp4(folder)[0],
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKERS)
def test_a_run_on_it_learns_is_read_back_and_says_how_it_was_kept(kind: str, tmp_path: Path) -> None:
    folder = MAKERS[kind](tmp_path / "base")
    run, events = jobs.train(
        tmp_path, folder, data={"eval": {"path": "train.jsonl"}}, eval={"every": 1},
        train={"epochs": 3, "learning_rate": 1e-2},
    )  # fmt: skip
    facts = jobs.manifest(run)
    first = next(event for event in events if event["event"] == "eval")
    assert facts["metrics"]["loss"] < first["loss"]
    assert facts["verified"]["reload"]["verified"] == "yes"
    assert facts["quantization"] is None  # it is the base's own, which its files and config say
    assert yaml.safe_load((run / "resolved.yaml").read_text())["model"].get("quantization") is None
    said = [event["message"] for event in events if event["event"] == "warning"]
    assert len([text for text in said if "unpacked to float32" in text]) == (kind in ("fp8", "mxfp4"))
    again = peftctl.load(run)
    assert again.held_out()(again.model) == pytest.approx(facts["metrics"], rel=1e-4)


@pytest.mark.slow
def test_evaluating_in_the_middle_changes_nothing(tmp_path: Path) -> None:
    from peftctl import atomic

    folder = bnb(tmp_path / "base", 4)
    sections: dict[str, Any] = {"data": {"eval": {"count": 4}}}
    plain, _ = jobs.train(tmp_path, folder, "plain", **sections)
    watched, _ = jobs.train(tmp_path, folder, "watched", **sections, eval={"every": 1})
    assert atomic.inventory(plain / "adapter") == atomic.inventory(watched / "adapter")


@pytest.mark.slow
def test_torchaos_eight_bits_train_where_it_is_installed(tmp_path: Path) -> None:
    quantization = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    from transformers import AutoModelForCausalLM, TorchAoConfig

    tiny.save(tmp_path / "plain")
    settings = TorchAoConfig(quantization.Int8WeightOnlyConfig())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=settings, dtype=torch.float32)
    run, events = jobs.train(tmp_path, tiny.save(tmp_path / "base", model), train={"epochs": 3, "learning_rate": 1e-2})
    assert jobs.losses(events)[-1] < jobs.losses(events)[0]
    assert peftctl.load(run).generate("odd", max_new_tokens=2) is not None


@pytest.mark.slow
def test_compressed_tensors_are_unpacked_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", exc_type=ImportError)
    from safetensors.torch import load_file, save_file

    folder = tiny.save(tmp_path / "base")
    packed, stands_for = {}, {}
    for name, weight in load_file(folder / "model.safetensors").items():
        packed[name] = stands_for[name] = weight
        if "proj" in name:
            scale = weight.abs().amax(1, keepdim=True) / 448
            packed[name] = (weight / scale).to(torch.float8_e4m3fn)
            packed[f"{name}_scale"] = scale
            stands_for[name] = packed[name].float() * scale
    save_file(packed, folder / "model.safetensors", {"format": "pt"})
    numbers = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**numbers, "strategy": "channel", "dynamic": False},
        "input_activations": {**numbers, "strategy": "token", "dynamic": True},
    }
    kept = {"quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed"}
    say(folder, {**kept, "ignore": ["lm_head"], "config_groups": {"group_0": group}})
    state = loaded(folder).state_dict()
    for name, weight in stands_for.items():
        assert torch.allclose(state[name], weight, rtol=1e-6, atol=0), name
    _, events = jobs.train(tmp_path, folder, train={"epochs": 3, "learning_rate": 1e-2})
    assert jobs.losses(events)[-1] < jobs.losses(events)[0]
