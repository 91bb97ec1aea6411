"""Going on from what another run trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftctl.errors import UsageError
from peftctl.model import load
from tests import jobs, tiny

HELD_OUT = {"eval": {"path": "train.jsonl"}}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4}, "ia3": {}, "loha": {"rank": 4}, "prompt_tuning": {"tokens": 4}, "prefix_tuning": {"tokens": 4},
    "ln_tuning": {}, "full": {}, "bitfit": {},
}  # fmt: skip
STILL = {"learning_rate": 1e-12, "max_steps": 1, "epochs": None}  # nothing moves


def weights(run: Path) -> dict[str, torch.Tensor]:
    (file,) = [file for name in ("adapter", "model") for file in (run / name).glob("*.safetensors")]
    return load_file(file)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    llama, qwen = tiny.save(folder / "llama"), tiny.save(folder / "qwen2", tiny.qwen2())
    return {name: qwen if name == "bitfit" else llama for name in METHODS}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_begins_where_the_other_ended(method: str, tmp_path: Path, bases: dict[str, Path]) -> None:
    settings = {"name": method, **METHODS[method]}
    first, _ = jobs.train(tmp_path, bases[method], "first", method=settings, data=HELD_OUT)
    then, _ = jobs.train(
        tmp_path, bases[method], "then", method=settings, data=HELD_OUT, train={"init_from": "first", **STILL}
    )
    before, after = weights(first), weights(then)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)
    assert jobs.manifest(then)["metrics"]["loss"] == pytest.approx(jobs.manifest(first)["metrics"]["loss"], rel=1e-5)
    said = jobs.manifest(then)["init_from"]
    assert Path(said["path"]).parent == first
    assert said["files"] == {
        name.partition("/")[2]: entry
        for name, entry in jobs.manifest(first)["files"].items()
        if name.startswith(Path(said["path"]).name)
    }


def test_an_adapter_of_plain_peft_is_gone_on_from_with_a_word_on_what_cannot_be_known(
    tmp_path: Path, tiny_model: Path
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    made = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    made.save_pretrained(tmp_path / "theirs")
    config_file = tmp_path / "theirs" / "adapter_config.json"
    config_file.write_text(json.dumps(json.loads(config_file.read_text()) | {"base_model_name_or_path": "a/b"}))
    run, events = jobs.train(
        tmp_path, tiny_model, method={"targets": ["q_proj", "v_proj"]}, train={"init_from": "theirs", **STILL}
    )
    warned = [event["message"] for event in events if event["event"] == "warning"]
    assert any("says that its base is a/b" in text for text in warned)
    theirs, ours = load_file(tmp_path / "theirs" / "adapter_model.safetensors"), weights(run)
    assert theirs.keys() == ours.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, bases: dict[str, Path]) -> Path:
    return jobs.train(tmp_path_factory.mktemp("first"), bases["lora"], "first")[0]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"name": "ia3"}, "was trained with lora (this recipe: ia3)"),
        ({"rank": 8, "alpha": 8}, "has other settings: rank is 4 there and 8 here"),
        ({"alpha": 4}, "has other settings: alpha is 8.0 there and 4.0 here"),
        ({"targets": ["q_proj"]}, "does not fit: "),
    ],
)
def test_another_method_or_size_is_refused(
    method: dict[str, Any], said: str, first: Path, tmp_path: Path, bases: dict[str, Path]
) -> None:
    with pytest.raises(UsageError) as refused:
        jobs.train(tmp_path, bases["lora"], method=method, train={"init_from": str(first)})
    assert said in refused.value.message
    assert not (tmp_path / "run").exists()


def test_another_base_is_refused_before_weights_are_loaded(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny.save(tmp_path / "other", tiny.llama(seed=1))
    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError, match="was trained on another base"):
        jobs.train(tmp_path, other, train={"init_from": str(first)})


def test_no_adapter_or_a_damaged_one_is_refused(first: Path, tmp_path: Path, bases: dict[str, Path]) -> None:
    (tmp_path / "adapters").mkdir()
    for where, said in (("adaptres", "did you mean"), ("adapters", "neither a finished run nor an adapter's folder")):
        with pytest.raises(UsageError, match=said):
            jobs.train(tmp_path, bases["lora"], train={"init_from": where})
    shutil.copytree(first / "adapter", tmp_path / "damaged")
    file = tmp_path / "damaged" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = min(tensors)
    del tensors[name]
    save_file(tensors, file)
    with pytest.raises(UsageError, match="is missing"):
        jobs.train(tmp_path, bases["lora"], train={"init_from": "damaged"})
