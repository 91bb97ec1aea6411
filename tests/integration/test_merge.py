"""What merging writes against what PEFT and transformers write of the same, bit by bit, and against arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from peftctl.merge.merge import Options, merge
from peftctl.merge.source import open_source
from tests import tiny

DTYPES = ["float32", "bfloat16"]
SHARDED = 20_000  # bytes in a file

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
# Configurations that PEFT's own merge is right about.
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LORA", LORA),
    "lora with dropout": ("LORA", {**LORA, "lora_dropout": 0.1}),
    "rslora": ("LORA", {**LORA, "use_rslora": True, "lora_alpha": 7}),  # a scale that rounds
    "dora": ("LORA", {**LORA, "use_dora": True}),
    "patterns": ("LORA", {**LORA, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 3}}),
    "layers": ("LORA", {**LORA, "layers_to_transform": [1]}),
    "tokens": ("LORA", {**LORA, "trainable_token_indices": [1, 7]}),
    "adalora": ("ADALORA", {"init_r": 4, "target_r": 2, "total_step": 10, "target_modules": ["q_proj", "down_proj"]}),
    "loha": ("LOHA", {"r": 4, "target_modules": ["q_proj", "down_proj"]}),
    "lokr": ("LOKR", {"r": 4, "target_modules": ["q_proj", "down_proj"]}),
    "ia3": ("IA3", {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "oft": ("OFT", {"oft_block_size": 8, "target_modules": ["q_proj", "down_proj"]}),
    "boft": ("BOFT", {"boft_block_size": 8, "target_modules": ["q_proj"]}),
    "vera": ("VERA", {"r": 8, "target_modules": ["q_proj"]}),
    "hra": ("HRA", {"r": 4, "target_modules": ["q_proj"]}),
    "fourierft": ("FOURIERFT", {"n_frequency": 64, "target_modules": ["q_proj"]}),
    "miss": ("MISS", {"r": 4, "target_modules": ["q_proj"]}),
    "hira": ("HIRA", {"r": 4, "target_modules": ["q_proj"]}),
    "randlora": ("RANDLORA", {"r": 8, "target_modules": ["q_proj"]}),
    "vblora": ("VBLORA", {"vector_length": 8, "num_vectors": 16, "target_modules": ["q_proj"]}),
    "shira": ("SHIRA", {"r": 2, "target_modules": ["q_proj"]}),
    "c3a": ("C3A", {"block_size": 8, "target_modules": ["q_proj"]}),
    "delora": ("DELORA", {"r": 4, "target_modules": ["q_proj"]}),
    "road": ("ROAD", {"group_size": 8, "target_modules": ["q_proj"]}),
    "ln_tuning": ("LN_TUNING", {"target_modules": ["input_layernorm"]}),
}


def trained(base: Path, folder: Path, peft_type: str, fields: Mapping[str, Any], dtype: str) -> Path:
    """A PEFT adapter of random numbers for the model in ``base``, as PEFT saves it."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, get_peft_model

    model = loaded(base, dtype)
    torch.manual_seed(1)
    config = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(peft_type)](task_type="CAUSAL_LM", **fields)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model, config)
        for parameter in peft_model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.05 * torch.randn(parameter.shape).to(parameter.dtype)
        peft_model.save_pretrained(folder)
    return folder


def loaded(base: Path, dtype: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))


def by_peft(base: Path, adapter: Path, folder: Path, dtype: str) -> dict[str, Any]:
    """The tensors that PEFT's own merge writes."""
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(loaded(base, dtype), adapter).merge_and_unload()
        merged.save_pretrained(folder)
    return tensors(folder)


def tensors(folder: Path) -> dict[str, Any]:
    return {name: value for file in sorted(folder.glob("*.safetensors")) for name, value in load_file(file).items()}


def differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    assert found.keys() == wanted.keys()
    return [
        name
        for name in wanted
        if not (found[name].dtype == wanted[name].dtype and torch.equal(found[name], wanted[name]))
    ]


def merged(adapter: Path, base: Path, out: Path, **options: Any) -> dict[str, Any]:
    heard: list[str] = []
    manifest = merge(open_source(adapter, base, heard.append), out, Options(**options), heard.append)
    return {**manifest, "heard": heard}


@pytest.fixture(scope="module", params=DTYPES)
def base(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    dtype = request.param
    folder = tmp_path_factory.mktemp("merge") / dtype
    return tiny.save(folder, tiny.llama(tie_word_embeddings=False).to(getattr(torch, dtype))), dtype


@pytest.mark.parametrize("name", EXACT)
def test_it_is_bit_equal_to_pefts_own_merge(tmp_path: Path, base: tuple[Path, str], name: str) -> None:
    folder, dtype = base
    peft_type, fields = EXACT[name]
    adapter = trained(folder, tmp_path / "adapter", peft_type, fields, dtype)
    facts = merged(adapter, folder, tmp_path / "out")
    assert facts["how"]["way"] == "layer by layer"
    assert differing(tensors(tmp_path / "out"), by_peft(folder, adapter, tmp_path / "peft", dtype)) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fields", [{}, {"use_dora": True}, {"lora_bias": True}], ids=["lora", "dora", "lora_bias"])
def test_transposed_layers_are_merged_as_peft_does(tmp_path: Path, fields: dict[str, Any], dtype: str) -> None:
    folder = tiny.save(tmp_path / "gpt2", tiny.gpt2().to(getattr(torch, dtype)))
    adapter = trained(folder, tmp_path / "adapter", "LORA", {"target_modules": ["c_attn", "c_fc"], **fields}, dtype)
    facts = merged(adapter, folder, tmp_path / "out")
    assert facts["how"]["way"] == "layer by layer"
    assert differing(tensors(tmp_path / "out"), by_peft(folder, adapter, tmp_path / "peft", dtype)) == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_shards_are_what_they_were_asked_to_be_and_hold_the_same(tmp_path: Path, dtype: str) -> None:
    folder = tmp_path / "sharded"
    tiny.llama(tie_word_embeddings=False).to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=SHARDED)
    tiny.tokenizer().save_pretrained(folder)
    adapter = trained(folder, tmp_path / "adapter", "LORA", LORA, dtype)
    merged(adapter, folder, tmp_path / "out", shard_bytes=SHARDED)
    assert differing(tensors(tmp_path / "out"), by_peft(folder, adapter, tmp_path / "peft", dtype)) == []
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert set(index["weight_map"].values()) == {file.name for file in files}
    largest = max(value.numel() * value.element_size() for value in tensors(folder).values())
    assert all(sum(v.numel() * v.element_size() for v in load_file(f).values()) <= max(SHARDED, largest) for f in files)
    logits_agree(tmp_path / "out", folder, adapter, dtype)


def logits_agree(out: Path, base: Path, adapter: Path, dtype: str, tolerance: float = 1e-5) -> None:
    """The merged folder, loaded by itself, computes what base and adapter do."""
    from peft import PeftModel

    ids = torch.arange(3, 40)[None]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = PeftModel.from_pretrained(loaded(base, "float32"), adapter)(input_ids=ids).logits
        found = loaded(out, "float32")(input_ids=ids).logits
    eps = tolerance if dtype == "float32" else 0.05
    assert float((found - wanted).norm()) <= eps * float(wanted.norm())


TIED = {
    "lora on the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "lora on the head": {"target_modules": ["lm_head", "q_proj"]},
    "the embedding whole": {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]},
    "the head whole": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    "both whole": {"modules_to_save": ["embed_tokens", "lm_head"], "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("name", TIED)
def test_what_comes_apart_is_untied_and_computes_what_base_and_adapter_do(tmp_path: Path, name: str) -> None:
    folder = tiny.save(tmp_path / "tied")
    adapter = trained(folder, tmp_path / "adapter", "LORA", TIED[name], "float32")
    merged(adapter, folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is False
    assert "lm_head.weight" in tensors(tmp_path / "out")
    logits_agree(tmp_path / "out", folder, adapter, "float32")


@pytest.mark.parametrize("fields", [LORA, {**LORA, "trainable_token_indices": [1, 7]}], ids=["no", "tokens"])
def test_what_stays_the_same_stays_tied(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = tiny.save(tmp_path / "tied")
    adapter = trained(folder, tmp_path / "adapter", "LORA", fields, "float32")
    merged(adapter, folder, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    assert differing(tensors(tmp_path / "out"), by_peft(folder, adapter, tmp_path / "peft", "float32")) == []


@pytest.mark.parametrize("dora", [False, True], ids=["by rows", "whole"])
def test_biases_that_were_trained_arrive(tmp_path: Path, dora: bool) -> None:
    folder = tiny.save(tmp_path / "qwen2", tiny.qwen2())
    fields = {"target_modules": ["q_proj", "down_proj"], "bias": "all", "use_dora": dora}
    adapter = trained(folder, tmp_path / "adapter", "LORA", fields, "float32")
    merged(adapter, folder, tmp_path / "out")
    found = tensors(tmp_path / "out")
    held = load_file(adapter / "adapter_model.safetensors")
    for key, value in held.items():
        if key.endswith("bias"):
            name = key.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(found[name], value)
    assert sum(key.endswith("bias") for key in held) == 6
    logits_agree(tmp_path / "out", folder, adapter, "float32")


@pytest.mark.parametrize("fields", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}], ids=str)
def test_what_changes_the_base_is_merged_in_memory_and_says_why(tmp_path: Path, fields: dict[str, Any]) -> None:
    folder = tiny.save(tmp_path / "base")
    adapter = trained(folder, tmp_path / "adapter", "LORA", {**LORA, **fields}, "float32")
    facts = merged(adapter, folder, tmp_path / "out")
    assert facts["how"]["way"] == "in memory"
    assert "changes the base's own weights" in facts["how"]["why"]
    logits_agree(tmp_path / "out", folder, adapter, "float32", 1e-4)


def test_experts_that_a_layer_computes_together_are_merged_in_memory(tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(**tiny.SIZES, num_local_experts=4, num_experts_per_tok=2)
    folder = tiny.save(tmp_path / "moe", MixtralForCausalLM(config))
    names = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    fields = {"target_modules": ["q_proj"], "target_parameters": names, "r": 2}
    adapter = trained(folder, tmp_path / "adapter", "LORA", fields, "float32")
    facts = merged(adapter, folder, tmp_path / "out")
    assert (facts["how"]["way"], "is made of" in facts["how"]["why"]) == ("in memory", True)
    logits_agree(tmp_path / "out", folder, adapter, "float32", 1e-4)
    plain = trained(folder, tmp_path / "plain", "LORA", {"target_modules": ["q_proj"]}, "float32")
    facts = merged(plain, folder, tmp_path / "other")
    assert facts["how"]["way"] == "layer by layer"
    assert differing(tensors(tmp_path / "other"), by_peft(folder, plain, tmp_path / "peft", "float32")) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_dtype_asked_for_is_rounded_to_once(tmp_path: Path, dtype: str) -> None:
    folder = tiny.save(tmp_path / "base", tiny.llama(tie_word_embeddings=False))
    adapter = trained(folder, tmp_path / "adapter", "LORA", LORA, "float32")
    merged(adapter, folder, tmp_path / "out", dtype=dtype)
    exact = by_peft(folder, adapter, tmp_path / "peft", "float32")
    assert differing(tensors(tmp_path / "out"), {n: v.to(getattr(torch, dtype)) for n, v in exact.items()}) == []
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_an_embedding_s_update_is_peft_s_with_its_copy_of_the_base_left_out(
    tmp_path: Path, base: tuple[Path, str]
) -> None:
    folder, dtype = base
    adapter = trained(folder, tmp_path / "adapter", "LORA", {"target_modules": ["embed_tokens", "q_proj"]}, dtype)
    assert any("embed_tokens.base_layer" in key for key in load_file(adapter / "adapter_model.safetensors"))
    merged(adapter, folder, tmp_path / "out")
    assert differing(tensors(tmp_path / "out"), by_peft(folder, adapter, tmp_path / "peft", dtype)) == []


def test_what_comes_apart_is_what_pefts_merge_makes_of_a_model_untied_by_hand(tmp_path: Path) -> None:
    model = tiny.llama()
    folder = tiny.save(tmp_path / "tied", model)
    fields = {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}
    adapter = trained(folder, tmp_path / "adapter", "LORA", fields, "float32")
    merged(adapter, folder, tmp_path / "out")
    apart = tiny.llama(tie_word_embeddings=False)
    apart.load_state_dict({**model.state_dict(), "lm_head.weight": model.get_input_embeddings().weight.clone()})
    by_hand = tiny.save(tmp_path / "untied", apart)
    assert differing(tensors(tmp_path / "out"), by_peft(by_hand, adapter, tmp_path / "peft", "float32")) == []


def test_an_embedding_s_update_is_what_numpy_makes_of_it(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "base", tiny.llama(tie_word_embeddings=False))
    fields = {"r": 4, "lora_alpha": 12, "target_modules": ["embed_tokens"]}
    adapter = trained(folder, tmp_path / "adapter", "LORA", fields, "float32")
    merged(adapter, folder, tmp_path / "out")
    held = {key.rpartition("embed_tokens.")[2]: value.numpy() for key, value in
            load_file(adapter / "adapter_model.safetensors").items()}  # fmt: skip
    weight = tensors(folder)["model.embed_tokens.weight"].numpy().astype("float64")
    wanted = weight + 3.0 * (held["lora_embedding_B"].astype("float64") @ held["lora_embedding_A"]).T
    found = tensors(tmp_path / "out")["model.embed_tokens.weight"].numpy()
    assert abs(found - wanted).max() <= 2e-6 * abs(wanted).max()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_vocabulary_that_was_made_larger_arrives(tmp_path: Path, tied: bool) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    folder = tiny.save(tmp_path / "base", tiny.llama(tie_word_embeddings=tied))
    model = loaded(folder, "float32")
    torch.manual_seed(3)
    model.resize_token_embeddings(268)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2))
        for name, parameter in peft_model.named_parameters():
            if "lora_B" in name:
                parameter.data += torch.randn(parameter.shape)
        peft_model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
        ids = torch.arange(250, 268)[None]
        with torch.no_grad():
            wanted = peft_model.eval()(input_ids=ids).logits
    merged(tmp_path / "adapter", folder, tmp_path / "out")
    found = loaded(tmp_path / "out", "float32")
    assert found.config.vocab_size == 268
    assert found.config.tie_word_embeddings is tied
    with torch.no_grad():
        logits = found(input_ids=ids).logits
    assert float((logits - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    assert isinstance(peft_model, PeftModel)


def test_a_process_that_is_killed_leaves_no_model_and_the_next_makes_it(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "base", tiny.llama(tie_word_embeddings=False))
    adapter = trained(folder, tmp_path / "adapter", "LORA", LORA, "float32")
    code = """
import sys, time
from pathlib import Path
from peftctl.merge import stream
from peftctl.merge.merge import Options, merge
from peftctl.merge.source import open_source
write = stream.Shards.write
def slow(self, name, data, first=0):
    write(self, name, data, first)
    print("writing", flush=True)
    time.sleep(60)
stream.Shards.write = slow
adapter, base, out = map(Path, sys.argv[1:])
merge(open_source(adapter, base, lambda _: None), out, Options())
"""
    command = [sys.executable, "-c", code, str(adapter), str(folder), str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.kill()
    assert len(list(tmp_path.glob(".out.*.partial"))) == 1
    assert not (tmp_path / "out").exists()
    merged(adapter, folder, tmp_path / "out")
    assert not list(tmp_path.glob(".out.*.partial"))
    assert differing(tensors(tmp_path / "out"), by_peft(folder, adapter, tmp_path / "peft", "float32")) == []
