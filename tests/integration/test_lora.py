"""LoRA's variants through the whole job on tiny models: trained, verified, loaded, and read by plain PEFT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import peftctl
from peftctl.errors import UsageError
from peftctl.fast.equal import tolerance
from peftctl.model import load
from peftctl.recipe import load as load_recipe
from tests import experts, jobs, tiny

IDS = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
MODELS = {
    "tied": tiny.llama, "untied": lambda: tiny.llama(tie_word_embeddings=False), "gpt2": lambda: tiny.gpt2(dropout=0.0),
    "qwen2": tiny.qwen2, "mixtral": experts.mixtral, "gpt_oss": experts.gpt_oss,
}  # fmt: skip
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
SPACE = 220  # a token of every row
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "patterns": ("tied", {"rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"*.1.mlp.*": 3.0}}),
    "dora": ("gpt2", {"dora": True, "dropout": 0.1}),
    "orthogonal": ("tied", {"init": "orthogonal", "loraplus": 4.0}),
    "pissa": ("tied", {"init": "pissa", "dropout": 0.1}),
    "olora": ("gpt2", {"init": "olora", "lora_bias": True}),
    "bias": ("qwen2", {"lora_bias": True, "targets": ["q_proj", "v_proj"]}),
    "embedding": ("untied", {"targets": ["all-linear", "embed_tokens", "lm_head"]}),
    "whole": ("tied", {"modules_to_save": ["embed_tokens", "norm"], "layers": [1]}),
    "tokens": ("tied", {"trainable_tokens": [SPACE, "<|im_end|>"]}),
    "experts": ("mixtral", {"target_parameters": EXPERTS}),
    "experts_transposed": ("gpt_oss", {"target_parameters": EXPERTS, "targets": [], "init": "gaussian"}),
    "many": (
        "untied",
        {"init": "pissa_niter_4", "modules_to_save": ["lm_head", "input_layernorm"], "trainable_tokens": [SPACE],
         "rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 7.0}, "loraplus": 4.0},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {kind: tiny.save(folder / kind, make()) for kind, make in MODELS.items()}


def train(folder: Path, base: Path, settings: dict[str, Any], name: str = "run", **sections: Any) -> Any:
    sections["train"] = {"learning_rate": 1e-2, "epochs": 2, **sections.get("train", {})}
    method = {"name": "lora", "rank": 4, **settings}
    return jobs.train(folder, base, name, method=method, data={"eval": {"path": "train.jsonl"}}, **sections)


def logits(model: Any) -> Any:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits.float()


def some(*quick: str) -> list[Any]:
    """Every variant, those that are not to be quick as slow tests."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in VARIANTS]


@pytest.mark.parametrize("variant", some("pissa", "tokens", "experts"))
def test_a_variant_learns_is_verified_and_is_what_plain_peft_loads_and_merges(
    variant: str, tmp_path: Path, bases: dict[str, Path]
) -> None:
    kind, settings = VARIANTS[variant]
    run, _ = train(tmp_path, bases[kind], settings)
    facts = jobs.manifest(run)
    verified = facts["verified"]["reload"]
    assert verified["verified"] == "yes"
    from_weights = settings.get("init") in ("pissa", "pissa_niter_4", "olora")
    assert verified["max_difference"] == 0 or (from_weights and verified["max_difference"] < verified["tolerance"])
    loaded = peftctl.load(run)
    assert loaded.held_out()(loaded.model) == pytest.approx(facts["metrics"], rel=1e-5)
    with loaded.base():
        assert facts["metrics"]["loss"] < 0.97 * loaded.held_out().of_base()(loaded.model)["loss"]
        own = logits(loaded.model)
    base = AutoModelForCausalLM.from_pretrained(bases[kind])
    assert torch.equal(own, logits(base))
    wanted = logits(loaded.model)
    read = PeftModel.from_pretrained(base, run / "adapter").eval()
    assert torch.equal(logits(read), wanted)
    merged = logits(read.merge_and_unload())
    assert float((merged - wanted).abs().max()) < 2**0.5 * tolerance(torch.float32) * float(wanted.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_bfloat16_base_trains_too_and_what_is_trained_is_saved_in_float32(
    variant: str, tmp_path: Path, bases: dict[str, Path]
) -> None:
    kind, settings = VARIANTS[variant]
    run, events = train(tmp_path, bases[kind], settings, model={"dtype": "bfloat16"}, eval={"every": 1})
    facts = jobs.manifest(run)
    assert facts["metrics"]["loss"] < next(event["loss"] for event in events if event["event"] == "eval")
    assert facts["verified"]["reload"]["verified"] == "yes"
    assert {tensor.dtype for tensor in load_file(run / "adapter" / "adapter_model.safetensors").values()} == {
        torch.float32
    }
    loaded = peftctl.load(run)
    # Rows of another batch are rounded to 16 bits elsewhere.
    assert loaded.held_out()(loaded.model)["loss"] == pytest.approx(facts["metrics"]["loss"], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpointing_gives_the_same_losses(variant: str, dtype: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    kind, settings = VARIANTS[variant]
    model = {"dtype": dtype}
    _, plain = train(tmp_path, bases[kind], settings, "plain", model=model)
    _, thrifty = train(tmp_path, bases[kind], settings, "thrifty", model=model, train={"gradient_checkpointing": True})
    assert jobs.losses(thrifty) == pytest.approx(jobs.losses(plain), rel=1e-5)


QUANTISED = {
    "dora": ("tied", {"dora": True, "dropout": 0.1}, (4,)),
    "orthogonal": VARIANTS["orthogonal"] + ((4, 8),),
    "bias": VARIANTS["bias"] + ((4, 8),),
    "embedding": VARIANTS["embedding"] + ((4, 8),),
    "whole": VARIANTS["whole"] + ((4, 8),),
    "tokens": VARIANTS["tokens"] + ((4, 8),),
    "experts": VARIANTS["experts"] + ((4, 8),),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("variant", "bits"), [(name, bits) for name, case in QUANTISED.items() for bits in case[2]])
def test_a_quantised_base_trains_and_what_is_saved_gives_the_same_logits(
    variant: str, bits: int, dtype: str, tmp_path: Path, bases: dict[str, Path]
) -> None:
    kind, settings, _ = QUANTISED[variant]
    model = {"dtype": dtype, "quantization": {"bits": bits}}
    run, events = train(tmp_path, bases[kind], settings, model=model, eval={"every": 1})
    facts = jobs.manifest(run)
    assert facts["verified"]["reload"]["max_difference"] == 0
    assert facts["metrics"]["loss"] < next(event["loss"] for event in events if event["event"] == "eval")
    loaded = peftctl.load(run)
    assert loaded.held_out()(loaded.model)["loss"] == pytest.approx(facts["metrics"]["loss"], rel=1e-2)


@pytest.mark.parametrize(
    ("settings", "bits", "wanted"),
    [
        (
            {"init": "pissa"},
            4,
            r"method\.init: does not go with 4 bits: pissa starts from weights that are not rounded",
        ),
        ({"init": "olora"}, 8, r"method\.init: does not go with 8 bits"),
        ({"dora": True}, 8, r"method\.dora: does not go with 8 bits.*; allowed: 4 bits, or dora false"),
    ],
)
def test_what_a_quantised_base_cannot_have_is_refused_before_weights_are_loaded(
    settings: dict[str, Any],
    bits: int,
    wanted: str,
    tmp_path: Path,
    bases: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError, match=wanted):
        train(tmp_path, bases["tied"], settings, model={"quantization": {"bits": bits}})


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["many", "whole", "experts"])
def test_a_run_s_resolved_recipe_gives_the_same_bits(variant: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    kind, settings = VARIANTS[variant]
    run, _ = train(tmp_path, bases[kind], settings)
    again = load_recipe(run / "resolved.yaml", output=str(tmp_path / "again"))
    from peftctl.events import Events
    from peftctl.train import job

    other = job.train(again, "", Events())
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (run / "adapter" / name).read_bytes() == (other / "adapter" / name).read_bytes()


@pytest.mark.parametrize("ratio", [None, 16.0])
def test_loraplus_moves_b_so_many_times_as_far(ratio: float | None, tmp_path: Path, bases: dict[str, Path]) -> None:
    once = {"max_steps": 1, "epochs": None, "learning_rate": 1e-3, "schedule": "constant", "warmup_ratio": 0.0}
    run, _ = train(tmp_path, bases["tied"], {"loraplus": ratio}, train=once)
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    # AdamW's first step is the learning rate in every number that has a gradient, and B started at zero.
    moved = torch.cat([tensor.flatten() for name, tensor in tensors.items() if "lora_B" in name]).abs()
    assert float(moved.median()) == pytest.approx((ratio or 1.0) * 1e-3, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dora", "whole", "tokens", "experts"])
def test_another_run_s_adapter_can_be_gone_on_from(variant: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    kind, settings = VARIANTS[variant]
    first, events = train(tmp_path, bases[kind], settings, "first")
    _, more = train(tmp_path, bases[kind], settings, "more", train={"init_from": str(first)}, eval={"every": 1})
    came = next(event["loss"] for event in more if event["event"] == "eval")
    assert came < next(event["loss"] for event in events if event["event"] == "step")
    assert jobs.losses(more)[0] < jobs.losses(events)[0]


@pytest.mark.slow
def test_a_start_from_weights_is_none_beside_another_run_s(tmp_path: Path, bases: dict[str, Path]) -> None:
    first, _ = train(tmp_path, bases["tied"], {"init": "pissa"}, "first")
    with pytest.raises(UsageError) as refused:
        train(tmp_path, bases["tied"], {"init": "pissa"}, "more", train={"init_from": str(first)})
    assert refused.value.message == (
        "method.init: pissa says what to start from, and so does train.init_from; allowed: init default"
    )
    rank = json.loads((first / "adapter" / "adapter_config.json").read_text())["r"]
    same = {"rank": rank, "alpha": 16.0}
    train(tmp_path, bases["tied"], same, "plain", train={"init_from": str(first), "max_steps": 1, "epochs": None})
