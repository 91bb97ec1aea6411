"""What is said of an adapter is so: PEFT makes it, and torch's singular values of PEFT's own update are the judge."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file

from peftctl.console import adapters
from peftctl.errors import UsageError
from peftctl.inspection import adapter as inspected
from peftctl.inspection.able import Able
from peftctl.inspection.adapter import AdapterFacts, adapter_facts
from peftctl.inspection.threads import _openblas, one_thread
from peftctl.merge import source
from tests import experts, tiny

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
WEIGHTS = "adapter_model.safetensors"


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": ["q_proj", "v_proj"], "r": 4, **fields})


def make(folder: Path, config: Any, model: Any = None, *, embeddings: bool = False) -> Any:
    """An adapter in ``folder`` whose every tensor is random; returns PEFT's model, in float64 from here on."""
    torch.manual_seed(1)
    peft_model = get_peft_model(model if model is not None else tiny.llama(), config)
    with torch.no_grad():
        for name, parameter in peft_model.named_parameters():
            if parameter.requires_grad and "ranknum" not in name:
                parameter.copy_(torch.randn_like(parameter))
    peft_model.save_pretrained(folder, save_embedding_layers=embeddings)
    edit(folder, base_model_name_or_path="owner/base")
    return peft_model.double()


def edit(folder: Path, **fields: Any) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))


def change(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def key(module: str, part: str) -> str:
    return f"base_model.model.{module}.{part}"


def problems(facts: AdapterFacts) -> dict[str, str]:
    """Messages by kind."""
    return {problem.kind: problem.message for problem in facts.problems}


LOW_RANK: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "lora": (lora, tiny.llama),
    "alpha": (lambda: lora(lora_alpha=3), tiny.llama),
    "rslora": (lambda: lora(use_rslora=True, lora_alpha=5), tiny.llama),
    "patterns": (
        lambda: lora(rank_pattern={"q_proj": 7, "layers.1.self_attn.v_proj": 2}, alpha_pattern={V: 11}),
        tiny.llama,
    ),
    "expressions": (lambda: lora(rank_pattern={r"layers\.[1-9]\..*": 3}, alpha_pattern={r"[qk]_proj": 9}), tiny.llama),
    "dora": (lambda: lora(use_dora=True), tiny.llama),
    "conv1d": (lambda: lora(target_modules=["c_attn", "c_proj"], fan_in_fan_out=True), tiny.gpt2),
    "embedding": (
        lambda: lora(target_modules=["embed_tokens", "q_proj"]),
        lambda: tiny.llama(tie_word_embeddings=False),
    ),
    "adalora": (lambda: AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=9), tiny.llama),
    "wide rank": (lambda: lora(r=40), tiny.llama),
}


@pytest.mark.parametrize("kind", LOW_RANK)
def test_norm_and_effective_rank_are_those_of_pefts_update(tmp_path: Path, kind: str) -> None:
    config, model = LOW_RANK[kind]
    peft_model = make(tmp_path, config(), model())
    facts = adapter_facts(tmp_path)
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in peft_model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert [module.name for module in facts.modules] == sorted(layers)
    for module in facts.modules:
        with torch.no_grad():
            values = torch.linalg.svdvals(layers[module.name].get_delta_weight("default").double())
        shares = values[values > values.max() * 1e-12] / values.sum()
        assert module.norm == pytest.approx(float(values.norm()), rel=1e-6)
        # Of a rank above the layer's the Gram matrices have values of zero, which they know to 1e-8 of the largest.
        entropy = float(-(shares * shares.log()).sum())
        assert module.effective_rank == pytest.approx(float(torch.tensor(entropy).exp()), rel=1e-5)
        assert module.rank == layers[module.name].r["default"]
    assert set(problems(facts)) <= {"vocabulary", "tied"}
    assert all(able.able for able in (facts.merges, *facts.exports.values()))


def test_adalora_is_measured_with_the_ranks_that_it_kept(tmp_path: Path) -> None:
    config = AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], init_r=6, total_step=9)
    peft_model = make(tmp_path, config)
    layer = peft_model.get_submodule(f"base_model.model.{Q}")
    kept = [True, False, True, True, False, False]
    with torch.no_grad():
        layer.lora_E["default"][~torch.tensor(kept)] = 0
        values = torch.linalg.svdvals(layer.get_delta_weight("default"))

    def prune(tensors: dict[str, torch.Tensor]) -> None:
        mask = torch.tensor(kept)
        for part in ("lora_A", "lora_E"):
            tensors[key(Q, part)] = tensors[key(Q, part)][mask]
        tensors[key(Q, "lora_B")] = tensors[key(Q, "lora_B")][:, mask].contiguous()

    change(tmp_path, prune)
    edit(tmp_path, rank_pattern={f"{Q}.lora_E": kept})
    facts = adapter_facts(tmp_path)
    assert problems(facts) == {}
    assert (facts.modules[0].rank, facts.modules[1].rank) == (3, 6)
    assert facts.modules[0].norm == pytest.approx(float(values.norm()), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_measured_as_it_is(tmp_path: Path, dtype: torch.dtype) -> None:
    make(tmp_path, lora())
    change(tmp_path, lambda tensors: tensors.update({name: each.to(dtype) for name, each in tensors.items()}))
    tensors = load_file(tmp_path / WEIGHTS)
    update = 2 * tensors[key(Q, "lora_B.weight")].double() @ tensors[key(Q, "lora_A.weight")].double()
    facts = adapter_facts(tmp_path)
    assert facts.modules[0].norm == pytest.approx(float(update.norm()), rel=1e-12)
    assert facts.dtypes == {{torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]: 1344 - 448}


def test_what_an_adapter_is_is_said(tmp_path: Path) -> None:
    make(tmp_path, lora(lora_alpha=16, use_rslora=True, revision="abc"))
    facts = adapter_facts(tmp_path)
    assert (facts.method, facts.peft_type, facts.task_type, facts.rank, facts.alpha) == (
        "lora",
        "LORA",
        "CAUSAL_LM",
        4,
        16.0,
    )
    assert facts.targets == {"model.layers.*.self_attn.q_proj": 2, "model.layers.*.self_attn.v_proj": 2}
    assert facts.layers == (0, 1)
    assert facts.variants == ("use_rslora",)
    assert (facts.base_name, facts.base_revision, facts.fit) == ("owner/base", "abc", None)
    tensors = load_file(tmp_path / WEIGHTS)
    assert facts.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert facts.dtypes == {"F32": facts.parameters}
    assert facts.size_bytes == (tmp_path / WEIGHTS).stat().st_size
    assert facts.problems == ()
    assert json.loads(json.dumps(facts.as_dict(), allow_nan=False))["modules"][0]["name"] == Q
    total = sum(module.norm**2 for module in facts.modules if module.norm) ** 0.5
    assert facts.update is not None
    assert facts.update["norm"] == pytest.approx(total)
    assert facts.in_short()["update"] == facts.update


OTHERS: dict[str, tuple[Callable[[], Any], str | None, bool | None]] = {
    "ia3": (
        lambda: IA3Config(
            task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
        "ia3",
        True,
    ),
    "loha": (lambda: LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]), "loha", True),
    "lokr": (
        lambda: LoKrConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], decompose_both=True, r=1),
        "lokr",
        True,
    ),
    "prompt_tuning": (
        lambda: PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "prompt_tuning",
        False,
    ),
    "prefix_tuning": (
        lambda: PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        "prefix_tuning",
        False,
    ),
    "vera": (lambda: VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4), None, None),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_methods_have_the_norms_of_their_tensors(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    config, method, merges = OTHERS[kind]
    make(tmp_path, config())
    facts = adapter_facts(tmp_path, tiny_model)
    if method:
        assert (facts.method, facts.merges.able) == (method, merges)
    assert problems(facts) == {}
    assert facts.fit is not None
    assert facts.fit.fits
    said = {}
    for module in facts.modules:
        assert (module.norm, module.effective_rank) == (None, None)
        for part, norm in module.tensors.items():
            said[key(module.name, part) if module.name else part] = norm
    tensors = load_file(tmp_path / WEIGHTS)
    assert said == {name: pytest.approx(float(tensor.double().norm())) for name, tensor in tensors.items()}


FRESH: dict[str, tuple[Callable[[], Any], str]] = {
    "lora": (lora, "lora_B"),
    "dora": (lambda: lora(use_dora=True), "lora_B"),
    "adalora": (LOW_RANK["adalora"][0], "lora_E"),
    "ia3": (OTHERS["ia3"][0], "ia3_l"),
    "loha": (OTHERS["loha"][0], "hada_w2_b"),
    "lokr": (lambda: LoKrConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]), "lokr_w1"),
}


@pytest.mark.parametrize("kind", FRESH)
def test_what_peft_has_just_made_was_never_trained(tmp_path: Path, kind: str) -> None:
    config, part = FRESH[kind]
    get_peft_model(tiny.llama(), config()).save_pretrained(tmp_path)
    facts = adapter_facts(tmp_path)
    assert problems(facts)["untrained"].startswith(f"never trained: {part} of every module is what it began as")
    assert {module.norm for module in facts.modules} <= {0.0, None}


@pytest.mark.parametrize("name", ["adapter_config.json", WEIGHTS])
@pytest.mark.parametrize("kind", ["pipe", "loop", "device"])
def test_an_adapter_of_pipes_devices_or_loops_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    make(tmp_path, lora())
    (tmp_path / name).unlink()
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to(tmp_path / name if kind == "loop" else "/dev/zero")
    with pytest.raises(UsageError) as error:
        adapter_facts(tmp_path)
    said = "is a link that leads back to itself" if kind == "loop" else "is no plain file"
    assert error.value.message.startswith(f"{tmp_path / name} {said}")


def test_virtual_tokens_do_not_merge_and_say_why(tmp_path: Path) -> None:
    make(tmp_path, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    facts = adapter_facts(tmp_path)
    assert facts.merges.reason == "virtual tokens come before the input and change no weight"
    assert facts.exports == {}
    assert (facts.virtual_tokens, facts.targets, facts.layers) == (4, {}, ())


def untrained(tensors: dict[str, torch.Tensor]) -> None:
    for name in tensors:
        if "lora_B" in name:
            tensors[name].zero_()


def lengthen(tensors: dict[str, torch.Tensor], module: str, part: str, shape: tuple[int, ...]) -> None:
    tensors[key(module, part)] = torch.ones(shape)


A, B = "lora_A.weight", "lora_B.weight"
DAMAGED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object] | None, dict[str, Any], str, str]] = {
    "untrained": (untrained, {}, "untrained", "never trained: lora_B of every module is what it began as"),
    "one untrained": (
        lambda tensors: tensors[key(Q, B)].zero_(),
        {},
        "untrained",
        f"1 of 4 modules change nothing: {Q}",
    ),
    "NaN": (lambda tensors: tensors[key(Q, A)].view(-1)[5].fill_(float("nan")), {}, "not_finite", f"in {Q}"),
    "infinity": (lambda tensors: tensors[key(V, B)][0, 0].fill_(-float("inf")), {}, "not_finite", f"in {V}"),
    "another key": (
        lambda tensors: tensors.update({key(Q, "lora_C.weight"): torch.ones(2)}),
        {},
        "unknown_keys",
        f"1 keys that the config does not explain, so that peft leaves them out: {key(Q, 'lora_C.weight')}",
    ),
    "no prefix": (
        lambda tensors: tensors.update({f"{Q}.lora_A.weight": tensors.pop(key(Q, A))}),
        {},
        "unknown_keys",
        f"{Q}.lora_A.weight",
    ),
    "A alone": (lambda tensors: tensors.pop(key(Q, B)), {}, "missing_keys", f"{Q} has lora_A without lora_B"),
    "target missing": (
        None,
        {"target_modules": ["q_proj", "v_proj", "k_proj"]},
        "missing_keys",
        "targets of the config of which the file has nothing: k_proj",
    ),
    "rank": (None, {"r": 8}, "shapes", f"{Q}: of rank 4, where the config says 8"),
    "rank of a pattern": (
        None,
        {"rank_pattern": {"v_proj": 2}},
        "shapes",
        "model.layers.0.self_attn.v_proj: of rank 4, where the config says 2",
    ),
    "A against B": (
        lambda tensors: lengthen(tensors, Q, B, (32, 5)),
        {},
        "shapes",
        f"{Q}: lora_B cannot be [32, 5] beside lora_A [4, 32]",
    ),
    "one dimension": (lambda tensors: lengthen(tensors, Q, A, (128,)), {}, "shapes", f"{Q}: lora_A cannot be [128]"),
    "no magnitudes": (None, {"use_dora": True}, "missing_keys", f"use_dora, and no magnitudes: {Q}"),
    "no base": (None, {"base_model_name_or_path": None}, "no_base", "base_model_name_or_path is missing"),
    "field": (
        None,
        {"lora_alhpa": 4, "zzz": 1},
        "unknown_fields",
        "fields that peft does not know: lora_alhpa (did you mean lora_alpha?), zzz",
    ),
    "kind of value": (
        None,
        {"r": "4", "target_modules": [1]},
        "field",
        "adapter_config.json: target_modules must be text or a list of texts (found '[1]')",
    ),
    "saved module missing": (
        None,
        {"modules_to_save": ["lm_head"]},
        "missing_keys",
        "modules_to_save of which the file has nothing: lm_head",
    ),
    "endless pattern": (
        None,
        {"rank_pattern": {r"([\w.]+)+!": 4}},
        "pattern",
        "is no regular expression, or takes too long to match",
    ),
    "targets of no expression": (None, {"target_modules": "(["}, "targets", "target_modules is no regular expression"),
    "endless targets": (None, {"target_modules": r"([\w.]+)+!"}, "targets", "or takes too long to match"),
    "targets elsewhere": (None, {"target_modules": r".*\.k_proj"}, "targets", "matches no module that the file has"),
    "too large": (lambda tensors: tensors[key(Q, B)].fill_(3e38), {}, "too_large", f"larger than any float32 in {Q}"),
    "no expression": (None, {"alpha_pattern": {"(": 4}}, "pattern", "is no regular expression"),
}


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize("fault", DAMAGED)
def test_what_is_wrong_is_said(tmp_path: Path, fault: str) -> None:
    damage, fields, kind, message = DAMAGED[fault]
    make(tmp_path, lora())
    assert problems(adapter_facts(tmp_path)) == {}
    if damage:
        change(tmp_path, damage)
    edit(tmp_path, **fields)
    facts = adapter_facts(tmp_path)
    found = problems(facts)
    assert kind in found
    assert message in found[kind]
    broken = any(problem.level == "error" for problem in facts.problems)
    assert facts.merges.able is not broken
    assert facts.wrong is broken
    assert bool(facts.merges.reason) is broken
    assert "_" not in facts.merges.reason
    assert broken == (kind not in ("untrained", "no_base", "unknown_fields", "pattern"))
    json.dumps(facts.as_dict(), allow_nan=False)


def test_experts_are_known_and_measured_by_their_tensors(tmp_path: Path) -> None:
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    make(tmp_path / "a", lora(target_modules=["q_proj"], target_parameters=parameters), experts.qwen3_moe())
    facts = adapter_facts(tmp_path / "a", tiny.save(tmp_path / "base", experts.qwen3_moe()))
    assert problems(facts) == {}
    assert facts.fit is not None
    assert (facts.fit.fits, facts.fit.unchecked) == (True, 4)
    assert facts.ranks == {4: 6}
    assert facts.targets == {
        "model.layers.*.mlp.experts.gate_up_proj": 2,
        "model.layers.*.mlp.experts.down_proj": 2,
        "model.layers.*.self_attn.q_proj": 2,
    }
    for module in facts.modules:
        assert (module.norm is not None) == module.name.endswith("q_proj")
        assert (module.tensors.keys() == {"lora_A", "lora_B"}) == ("experts" in module.name)


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys")  # PEFT looks for them among modules alone
@pytest.mark.parametrize("parameters", [["mlp.experts.gate_up_proj", "mlp.experts.down_proj"], ["experts.down_proj"]])
def test_experts_are_named_after_the_parameters_that_peft_adapts(tmp_path: Path, parameters: list[str]) -> None:
    made = make(tmp_path, lora(target_parameters=parameters, rank_pattern={"down_proj": 3}), experts.mixtral())
    wrappers = {
        f"{name.removeprefix('base_model.model.').replace('.base_layer', '')}.{module.parameter_name}": module
        for name, module in made.named_modules()
        if type(module).__name__ == "ParamWrapper"
    }
    found = {module.name: module for module in adapter_facts(tmp_path).modules if "experts" in module.name}
    assert found.keys() == wrappers.keys()
    for name, wrapper in wrappers.items():
        assert found[name].rank == wrapper.r["default"] == (3 if name.endswith("down_proj") else 4)
        sizes = (each["default"].weight.numel() for each in (wrapper.lora_A, wrapper.lora_B))
        assert found[name].parameters == sum(sizes)


def test_experts_that_cannot_be_compared_are_unchecked_and_never_said_to_be_missing(tmp_path: Path) -> None:
    """Mixtral's files have each expert by itself, below another name than the model's."""
    make(tmp_path / "a", lora(target_parameters=["mlp.experts.gate_up_proj"]), experts.mixtral())
    base = tiny.save(tmp_path / "base", experts.mixtral())
    stored = load_file(base / "model.safetensors")
    assert not [name for name in stored if ".mlp.experts." in name]
    found = adapter_facts(tmp_path / "a", base).fit
    assert found is not None
    assert (found.fits, found.unchecked, found.misfits) == (True, 2, ())
    facts = adapter_facts(tmp_path / "a", tiny.save(tmp_path / "dense", tiny.llama()))
    assert facts.fit is not None
    assert (facts.fit.fits, facts.fit.unchecked, facts.wrong) == (None, 2, False)
    assert facts.fit.misfits[0].startswith("there is nothing to compare model.layers.0.mlp.experts.gate_up_proj")
    other = adapter_facts(tmp_path / "a", tiny.save(tmp_path / "other", tiny.llama(hidden_size=64))).fit
    assert other is not None
    assert other.fits is False


NOT_MERGED: dict[str, tuple[dict[str, Any], str]] = {
    "another task": ({"task_type": "SEQ_CLS"}, "it is for SEQ_CLS, and does not say its labels: its run does"),
    "no task": (
        {"task_type": "FOO"},
        "it is for FOO, and models are merged for CAUSAL_LM, SEQ_2_SEQ_LM, SEQ_CLS, TOKEN_CLS, QUESTION_ANS, "
        "FEATURE_EXTRACTION",
    ),
    "no such method": ({"peft_type": "FOO"}, "has no method FOO"),
}


@pytest.mark.parametrize("kind", NOT_MERGED)
def test_what_merge_would_refuse_is_not_said_to_merge(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    fields, said = NOT_MERGED[kind]
    make(tmp_path, lora())
    edit(tmp_path, base_model_name_or_path=str(tiny_model))
    source.open_source(tmp_path, None, lambda _: None)
    assert (adapter_facts(tmp_path).merges, adapter_facts(tmp_path).exports) == (Able(True), {})
    edit(tmp_path, **fields)
    facts = adapter_facts(tmp_path)
    assert facts.merges.able is False
    assert said in facts.merges.reason
    with pytest.raises(UsageError):
        source.open_source(tmp_path, None, lambda _: None)


def test_other_alphas_and_blocks_are_said_and_no_rank_that_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "lora", lora(alpha_pattern={V: 11}))
    facts = adapter_facts(tmp_path / "lora")
    assert facts.alphas == {8.0: 3, 11.0: 1}
    adapters.show(facts)
    assert "alpha: 8 in 3, 11 in 1\n" in capsys.readouterr().out
    for fields, said in (({"oft_block_size": 16}, "blocks of 16"), ({"r": 2, "oft_block_size": 0}, "2 blocks")):
        folder = tmp_path / said
        make(folder, OFTConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **fields))
        facts = adapter_facts(folder)
        assert (facts.rank, facts.blocks) == (None, said)
        adapters.show(facts)
        out = capsys.readouterr().out
        assert f"oft, {said}, for CAUSAL_LM" in out
        assert "rank" not in out.splitlines()[0]


def test_a_pattern_that_cannot_be_matched_leaves_norms_of_tensors(tmp_path: Path) -> None:
    make(tmp_path, lora())
    edit(tmp_path, alpha_pattern={"(": 4})
    module = adapter_facts(tmp_path).modules[0]
    a, b = (load_file(tmp_path / WEIGHTS)[key(Q, part)].double() for part in (A, B))
    assert (module.norm, module.scale) == (None, None)
    assert module.tensors == {"lora_A": pytest.approx(float(a.norm())), "lora_B": pytest.approx(float(b.norm()))}


def test_modules_saved_whole_are_told_from_the_adapter(tmp_path: Path, tiny_model: Path) -> None:
    config = lora(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])
    make(tmp_path, config, tiny.llama(tie_word_embeddings=False))
    facts = adapter_facts(tmp_path, tiny_model)
    assert facts.saved == {"lm_head.weight": 264 * 32, "model.embed_tokens.weight": 264 * 32}
    assert problems(facts).keys() == {"modules_to_save", "tied"}
    assert "which this base shares between embedding and head" in problems(facts)["tied"]
    change(tmp_path, untrained)
    assert problems(adapter_facts(tmp_path))["untrained"].startswith("only the modules that it brings whole")
    change(tmp_path, lambda tensors: tensors["base_model.model.lm_head.weight"][3, 3].fill_(float("nan")))
    assert problems(adapter_facts(tmp_path))["not_finite"] == "NaN or infinity in lm_head.weight"


@pytest.mark.filterwarnings("ignore:Adapter 'default'. . LoRA tensor.s. have invalid shape")  # a bias has one dimension
def test_token_rows_biases_and_embeddings_are_explained(tmp_path: Path) -> None:
    make(tmp_path / "rows", lora(trainable_token_indices=[1, 2]))
    make(tmp_path / "bias", lora(bias="lora_only", lora_bias=True), tiny.qwen2())
    assert problems(adapter_facts(tmp_path / "rows")) == {}
    assert problems(adapter_facts(tmp_path / "bias")) == {}
    make(tmp_path / "beside", lora(), embeddings=True)
    assert problems(adapter_facts(tmp_path / "beside")) == {}
    assert "model.embed_tokens.weight" in adapter_facts(tmp_path / "beside").saved
    edit(tmp_path / "rows", trainable_token_indices=None)
    edit(tmp_path / "bias", bias="none")
    assert "trainable_tokens_delta" in problems(adapter_facts(tmp_path / "rows"))["unknown_keys"]
    assert "base_layer.bias" in problems(adapter_facts(tmp_path / "bias"))["unknown_keys"]


@pytest.mark.parametrize("targets", [["embed_tokens", "q_proj"], ["lm_head", "q_proj"]])
def test_what_an_adapter_on_tied_embeddings_does_to_them_is_said(
    tmp_path: Path, tiny_model: Path, targets: list[str]
) -> None:
    model = tiny.llama(tie_word_embeddings=False)
    make(tmp_path / "a", lora(target_modules=targets), model)
    facts = adapter_facts(tmp_path / "a", tiny_model)
    assert "shares between embedding and head" in problems(facts)["tied"]
    assert (facts.merges.able, facts.exports) == (True, {})  # they come apart
    assert facts.fit is not None
    assert facts.fit.fits
    edit(tmp_path / "a", base_model_name_or_path=str(tiny_model))  # the config of the base it names is enough
    assert "tied" in problems(adapter_facts(tmp_path / "a"))
    untied = tiny.save(tmp_path / "untied", tiny.llama(tie_word_embeddings=False))
    facts = adapter_facts(tmp_path / "a", untied)
    assert "tied" not in problems(facts)
    assert facts.merges.able


def test_weights_tell_of_ties_that_a_config_leaves_to_its_class(tmp_path: Path) -> None:
    make(tmp_path / "a", lora(target_modules=["wte", "c_attn"], fan_in_fan_out=True), tiny.gpt2())
    base = tiny.save(tmp_path / "base", tiny.gpt2())
    config = json.loads((base / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (base / "config.json").write_text(json.dumps(config))
    assert "tied" in problems(adapter_facts(tmp_path / "a", base))


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], None])
def test_a_resized_vocabulary_is_said(tmp_path: Path, targets: list[str] | None) -> None:
    model = tiny.llama(tie_word_embeddings=False, vocab_size=270)
    config = lora(target_modules=targets) if targets else lora(modules_to_save=["embed_tokens"])
    make(tmp_path / "a", config, model)
    base = tiny.save(tmp_path / "base", tiny.llama(tie_word_embeddings=False))
    facts = adapter_facts(tmp_path / "a", base)
    assert "has 270 rows, and this base 264: its vocabulary was resized" in problems(facts)["vocabulary"]
    assert facts.fit is not None
    assert not facts.fit.fits
    same = tiny.save(tmp_path / "same", tiny.llama(tie_word_embeddings=False, vocab_size=270))
    facts = adapter_facts(tmp_path / "a", same)
    assert "vocabulary" not in problems(facts)
    assert facts.fit is not None
    assert facts.fit.fits


BASES: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    "own": (tiny.llama, ()),
    "fewer layers": (
        lambda: tiny.llama(num_hidden_layers=1),
        (f"2 modules are not there: model.layers.1.self_attn.q_proj, {V}",),
    ),
    "more layers": (
        lambda: tiny.llama(num_hidden_layers=3),
        ("the config's targets name 2 layers that the adapter lacks: model.layers.2.self_attn.q_proj.weight",),
    ),
    "wider": (lambda: tiny.llama(hidden_size=64), (f"{Q} is for [32, 32], and is [64, 64] there",)),
    "other heads": (lambda: tiny.llama(num_key_value_heads=4), (f"{V} is for [16, 32], and is [32, 32] there",)),
    "another kind": (tiny.gpt2, (f"4 modules are not there: {Q}",)),
}


@pytest.mark.parametrize("base", BASES)
def test_whether_a_base_fits_is_said(tmp_path: Path, base: str) -> None:
    model, misfits = BASES[base]
    make(tmp_path / "a", lora())
    facts = adapter_facts(tmp_path / "a", tiny.save(tmp_path / "base", model()))
    assert facts.fit is not None
    assert facts.fit.fits is not bool(misfits)
    assert len(facts.fit.misfits) >= len(misfits)
    for misfit in misfits:
        assert any(said.startswith(misfit) for said in facts.fit.misfits), facts.fit.misfits
    assert bool(facts.fit.misfits) is bool(misfits)


@pytest.mark.parametrize("kind", ["prompt_tuning", "prefix_tuning"])
def test_virtual_tokens_of_another_width_do_not_fit(tmp_path: Path, kind: str) -> None:
    make(tmp_path / "a", OTHERS[kind][0]())
    for changes, fits in (({}, True), ({"hidden_size": 64}, False)):
        folder = tiny.save(tmp_path / f"base{fits}", tiny.llama(**changes))
        found = adapter_facts(tmp_path / "a", folder).fit
        assert found is not None
        assert found.fits is fits
    assert found is not None
    assert found.misfits[0].startswith("its virtual tokens are ")


def test_a_conv1d_base_is_the_other_way_round(tmp_path: Path) -> None:
    make(tmp_path / "a", lora(target_modules=["c_attn"], fan_in_fan_out=True), tiny.gpt2())
    base = tiny.save(tmp_path / "base", tiny.gpt2())
    found = adapter_facts(tmp_path / "a", base).fit
    assert found is not None
    assert found.fits
    edit(tmp_path / "a", fan_in_fan_out=False)
    found = adapter_facts(tmp_path / "a", base).fit
    assert found is not None
    assert "is for [96, 32], and is [32, 96] there" in found.misfits[0]
    # The hub's GPT-2 files begin their names without the class's "transformer."
    tensors = load_file(base / "model.safetensors")
    save_file({name.removeprefix("transformer."): each for name, each in tensors.items()}, base / "model.safetensors")
    edit(tmp_path / "a", fan_in_fan_out=True)
    found = adapter_facts(tmp_path / "a", base).fit
    assert found is not None
    assert found.fits


def test_packed_weights_are_looked_up_by_name(tmp_path: Path, tiny_model: Path) -> None:
    make(tmp_path / "a", lora())
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    tensors = load_file(tiny_model / "model.safetensors")
    packed = {
        name: torch.zeros(512, 1, dtype=torch.uint8) if "_proj" in name else each for name, each in tensors.items()
    }
    save_file(packed, base / "model.safetensors")
    found = adapter_facts(tmp_path / "a", base).fit
    assert found is not None
    assert (found.fits, found.unchecked) == (True, 4)


@pytest.mark.parametrize(
    ("make_base", "fault"),
    [
        (lambda path: path.mkdir(), "holds no config.json, so it is no base model"),
        (lambda path: path.write_text("x"), "is a file, where the folder of a base model was expected"),
        (lambda path: None, ": no such file or folder"),
    ],
    ids=["empty", "file", "nothing"],
)
def test_what_is_no_base_is_refused(tmp_path: Path, make_base: Callable[[Path], None], fault: str) -> None:
    make(tmp_path / "a", lora())
    make_base(tmp_path / "base")
    with pytest.raises(UsageError) as error:
        adapter_facts(tmp_path / "a", tmp_path / "base")
    assert error.value.message.removeprefix(str(tmp_path / "base")).strip() == fault.strip()


def test_a_gguf_file_is_no_base_and_it_is_said_what_is(tmp_path: Path) -> None:
    make(tmp_path / "a", lora())
    (tmp_path / "base.gguf").write_bytes(b"GGUF")
    with pytest.raises(UsageError) as error:
        adapter_facts(tmp_path / "a", tmp_path / "base.gguf")
    assert "is a GGUF file, whose tensors have other names than an adapter's modules; allowed: the model's folder" in (
        error.value.message
    )
    assert "base_model_name_or_path" in error.value.hint


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        adapter_facts(tmp_path / "none")
    make(tmp_path / "above" / "a", lora())
    with pytest.raises(UsageError, match=r"holds no adapter_config\.json") as error:
        adapter_facts(tmp_path / "above")
    assert error.value.hint == f"{tmp_path}/above/a is one"
    edit(tmp_path / "above" / "a", peft_type=...)
    with pytest.raises(UsageError, match="has no peft_type"):
        adapter_facts(tmp_path / "above" / "a")


def test_a_pickle_is_never_opened_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, lora())
    (tmp_path / WEIGHTS).rename(tmp_path / "adapter_model.bin")
    opened: list[str] = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *rest: (opened.append(Path(path).name), real(path, *rest))[1])
    facts = adapter_facts(tmp_path)
    assert opened == ["adapter_config.json"]
    assert "a pickle, which runs code when it is opened: it was not" in problems(facts)["pickle"]
    assert (facts.modules, facts.merges.able) == ((), False)
    assert facts.size_bytes == (tmp_path / "adapter_model.bin").stat().st_size
    (tmp_path / "adapter_model.bin").unlink()
    with pytest.raises(UsageError, match=r"holds no adapter_model\.safetensors"):
        adapter_facts(tmp_path)


def test_a_truncated_adapter_is_refused(tmp_path: Path) -> None:
    make(tmp_path, lora())
    size = (tmp_path / WEIGHTS).stat().st_size
    os.truncate(tmp_path / WEIGHTS, size - 1)
    with pytest.raises(UsageError, match=f"is cut short \\({size - 1:,} bytes"):
        adapter_facts(tmp_path)


def test_large_adapters_are_measured_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, lora())
    monkeypatch.setattr(inspected, "MEASURED_MODULES", 1)
    facts = adapter_facts(tmp_path)
    assert [module.norm is not None for module in facts.modules] == [True, False, False, False]
    assert problems(facts)["not_measured"].startswith("not measured: model.layers.0.self_attn.v_proj")
    monkeypatch.setattr(inspected, "MEASURED_BYTES", 0)
    assert adapter_facts(tmp_path).update is None


@pytest.mark.slow
def test_an_adapter_takes_a_second_and_none_of_the_heavy_libraries(tmp_path: Path) -> None:
    make(tmp_path, lora())
    code = (
        "import sys, time, resource\n"
        "from pathlib import Path\n"
        "from peftctl.console import adapters\n"
        "from peftctl.inspection.adapter import adapter_facts\n"
        f"adapters.show(adapter_facts(Path({str(tmp_path)!r})))\n"
        "assert not {'torch', 'peft', 'transformers', 'safetensors'} & set(sys.modules)\n"
        "print(time.process_time())"
    )
    # The processor's own time, since other tests run beside this one; the least of three.
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(3)]
    assert min(float(done.stdout.splitlines()[-1]) for done in runs) < 1.5
    assert "model.layers.*.self_attn.q_proj" in runs[0].stdout


@pytest.mark.slow
def test_a_large_adapter_takes_seconds_and_little_memory(tmp_path: Path) -> None:
    modules = {f"model.layers.{layer}.mlp.{name}": None for layer in range(32) for name in ("up_proj", "down_proj")}
    tensors = {}
    for module in modules:
        tensors[key(module, A)] = torch.randn(64, 8192).bfloat16()
        tensors[key(module, B)] = torch.randn(8192, 64).bfloat16()
    save_file(tensors, tmp_path / WEIGHTS)
    config = {"peft_type": "LORA", "r": 64, "lora_alpha": 64, "target_modules": ["up_proj", "down_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    code = (
        "import resource, time\n"
        "from pathlib import Path\n"
        "from peftctl.inspection.adapter import adapter_facts\n"
        "begun, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"adapter_facts(Path({str(tmp_path)!r}))\n"
        "print(time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, done.stdout.split())
    assert (tmp_path / WEIGHTS).stat().st_size > 130_000_000
    assert seconds < 5
    assert kilobytes < 80_000


def test_one_thread_is_one_thread_and_then_as_many_as_before() -> None:
    found = _openblas()
    if found is None:
        pytest.skip("numpy has another library here")
    get, put = found
    before = get()
    try:
        put(2)
        with one_thread():
            assert get() == 1
        assert get() == 2
    finally:
        put(before)


def test_a_person_sees_what_matters(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, lora(rank_pattern={"v_proj": 2}))
    change(tmp_path, lambda tensors: tensors[key(Q, B)].zero_())
    adapters.show(adapter_facts(tmp_path, tiny_model))
    out = capsys.readouterr().out
    assert f"{tmp_path}: lora, rank 4, alpha 8, for CAUSAL_LM; " in out
    assert "base: owner/base\n" in out
    assert "layers: 0-1\n" in out
    assert f"fits: yes, {tiny_model}\n" in out
    assert "merges: yes\n" in out
    assert f"warning: 1 of 4 modules change nothing: {Q}\n" in out
    row = next(line.split() for line in out.splitlines() if line.startswith("model.layers.*.self_attn.v_proj"))
    assert row[1:4] == ["2", "192", "2"]


def test_names_of_strangers_do_nothing_to_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path, lora())
    nasty = "[bold]\x1b[2J\n[/x]\\u202e"
    change(tmp_path, lambda tensors: tensors.update({key(f"{nasty}.q_proj", "lora_A.weight"): torch.ones(4, 3)}))
    edit(tmp_path, base_model_name_or_path=nasty, task_type="\x07[red]" + "x" * 10_000, r=10**18)
    adapters.show(adapter_facts(tmp_path))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "[bold]\\x1b[2J" in out
    assert max(map(len, out.splitlines())) < 1000
