"""PEFT's own methods through the whole job on a tiny model, by their own names and rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import peftctl
from peftctl import atomic
from peftctl.errors import UsageError
from peftctl.methods import METHODS
from peftctl.methods.generic import GENERIC
from peftctl.methods.generic_facts import FACTS
from peftctl.model import load
from peftctl.recipe import load as load_recipe
from tests import jobs, tiny

# Settings that go into a model of width 32; the tokens are those that every row has.
SMALL: dict[str, dict[str, Any]] = {
    "adamss": {"r": 8, "num_subspaces": 2}, "adaption_prompt": {"adapter_len": 4}, "beft": {}, "boft": {},
    "c3a": {"block_size": 8}, "cartridge": {"num_virtual_tokens": 4}, "deft": {}, "delora": {},
    "fourierft": {"n_frequency": 100}, "frod": {}, "glora": {}, "gralora": {"r": 4}, "hira": {"r": 4}, "hra": {},
    "miss": {"r": 4}, "oft": {"oft_block_size": 8}, "osf": {}, "peanut": {"r": 4}, "psoft": {"r": 8},
    "pvera": {"r": 16}, "randlora": {"r": 8, "randlora_alpha": 32}, "road": {"group_size": 16}, "shadow": {},
    "shira": {"r": 2}, "supertuning": {"sparsity": 0.9}, "tinylora": {"u": 16},
    "trainable_tokens": {"token_indices": [257, 258, 259]}, "unilora": {},
    "vblora": {"vector_length": 16, "num_vectors": 32}, "vera": {"r": 16}, "waveft": {"n_frequency": 100},
}  # fmt: skip
# What is particular: no targets and keys before each row, a network beside the model, tensors saved beside PEFT's.
QUICK = ("boft", "cartridge", "psoft", "shadow", "trainable_tokens")
UNTARGETED = {"adaption_prompt", "cartridge", "shadow", "trainable_tokens"}


def some(*quick: str) -> list[Any]:
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in SMALL]


def train(folder: Path, base: Path, name: str, run: str = "run", **sections: Any) -> tuple[Path, list[dict[str, Any]]]:
    sections["method"] = {"name": name, **SMALL[name], **sections.get("method", {})}
    sections["train"] = {"learning_rate": None, "epochs": 4, **sections.get("train", {})}
    return jobs.train(folder, base, run, data={"eval": {"path": "train.jsonl"}}, eval={"every": 1}, **sections)


def test_every_method_that_can_be_trained_is_trained_here() -> None:
    assert SMALL.keys() == {name for name in GENERIC if not FACTS[name].refused}


@pytest.mark.parametrize("name", some(*QUICK))
def test_it_learns_at_its_own_rate_is_verified_and_loads(name: str, tmp_path: Path, tiny_model: Path) -> None:
    run, events = train(tmp_path, tiny_model, name)
    facts = jobs.manifest(run)
    recipe = load_recipe(run / "resolved.yaml")
    assert recipe.train.learning_rate == METHODS[name].learning_rate
    assert recipe.method.name == name
    assert facts["verified"]["reload"]["max_difference"] == 0.0
    assert facts["trainable_parameters"] == next(e["trainable"] for e in events if e["event"] == "model") > 0
    assert bool(facts["targets"]) is (name not in UNTARGETED)
    first = next(event for event in events if event["event"] == "eval")
    assert facts["metrics"]["loss"] < first["loss"]
    loaded = peftctl.load(run)
    assert loaded.held_out()(loaded.model) == pytest.approx(facts["metrics"], rel=1e-5)
    assert isinstance(loaded.generate("odd even", max_new_tokens=4), str)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_bfloat16_base_trains_too(name: str, tmp_path: Path, tiny_model: Path) -> None:
    rate = max(METHODS[name].learning_rate, 1e-2)  # smaller steps are lost in 16 bits in so few of them
    run, events = train(tmp_path, tiny_model, name, model={"dtype": "bfloat16"}, train={"learning_rate": rate})
    first = next(event for event in events if event["event"] == "eval")
    assert jobs.manifest(run)["metrics"]["loss"] < first["loss"]
    assert jobs.manifest(run)["verified"]["reload"]["max_difference"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_the_same_recipe_leaves_the_same_bytes(name: str, tmp_path: Path, tiny_model: Path) -> None:
    first, _ = train(tmp_path, tiny_model, name, "first", train={"epochs": 1})
    second, _ = train(tmp_path, tiny_model, name, "second", train={"epochs": 1})
    assert atomic.inventory(first / "adapter") == atomic.inventory(second / "adapter")


@pytest.mark.parametrize("name", some("psoft"))
def test_a_run_goes_on_from_another(name: str, tmp_path: Path, tiny_model: Path) -> None:
    first, _ = train(tmp_path, tiny_model, name, "first")
    init = {"init_from": str(first)}
    _, events = train(tmp_path, tiny_model, name, "second", train={**init, "epochs": 1, "learning_rate": 1e-12})
    again = [event["loss"] for event in events if event["event"] == "eval"]
    assert again[-1] == pytest.approx(jobs.manifest(first)["metrics"]["loss"], rel=1e-4)


@pytest.mark.parametrize("name", sorted(name for name, facts in FACTS.items() if facts.refused))
def test_what_cannot_be_trained_is_refused_before_weights_are_loaded(
    name: str, tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError, match=f"{name} .*{FACTS[name].refused[:40]}"):
        jobs.train(tmp_path, tiny_model, method={"name": name})
    assert not (tmp_path / "run" / "adapter").exists()


def test_peft_itself_reads_what_was_trained(tmp_path: Path, tiny_model: Path) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM

    run, _ = train(tmp_path, tiny_model, "boft")
    plain = AutoPeftModelForCausalLM.from_pretrained(run / "adapter").eval()
    ours = peftctl.load(run).model
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        assert torch.equal(plain(input_ids=ids).logits, ours(input_ids=ids).logits)
    assert tiny.SIZES["hidden_size"] == plain.config.hidden_size
