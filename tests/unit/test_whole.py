"""Checkpoints that are not the whole of a model: what would be random numbers is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from peftctl.errors import UsageError
from peftctl.model import load, whole
from peftctl.model.locate import Base
from peftctl.recipe.schema import ModelSettings
from peftctl.tasks import TASKS
from tests import jobs, tiny

Tensors = dict[str, torch.Tensor]


def changed(folder: Path, change: Callable[[Tensors], Tensors], model: Any = None, **config: Any) -> Path:
    """A model's folder with other tensors, or another config, than belong together."""
    from safetensors.torch import load_file, save_file

    tiny.save(folder, tiny.llama(tie_word_embeddings=False) if model is None else model)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    said = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**said, **config}))
    return folder


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def plus(*names: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, **{name: torch.zeros(32) for name in names}}


def loaded(folder: Path) -> tuple[Any, list[str]]:
    """The model, and what is noted while it is loaded."""
    notes: list[str] = []
    base = Base(str(folder), folder, "folder")
    task = TASKS["causal_lm"]
    return load.load_model(base, ModelSettings(name=str(folder)), task, "float32", notes.append), notes


def refused(folder: Path) -> str:
    with pytest.raises(UsageError) as error:
        loaded(folder)
    assert error.value.hint.startswith("its config.json and weights do not belong together")
    return error.value.message.removeprefix(f"model.name: {folder} is not the whole of a ")


def test_a_head_that_is_not_in_the_file_is_refused_by_name(tmp_path: Path) -> None:
    assert refused(changed(tmp_path / "m", without("lm_head"))) == (
        "LlamaForCausalLM: lm_head.weight is not in it, and would be random numbers"
    )


def test_a_head_that_is_the_embedding_is_not_missing(tmp_path: Path) -> None:
    folder = changed(tmp_path / "m", without("lm_head"), tiny.llama())
    model, notes = loaded(folder)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert notes == []


def test_layers_that_are_not_in_the_file_are_refused_and_counted(tmp_path: Path) -> None:
    assert refused(changed(tmp_path / "one", without("layers.1.mlp.up"))) == (
        "LlamaForCausalLM: model.layers.1.mlp.up_proj.weight is not in it, and would be random numbers"
    )
    assert refused(changed(tmp_path / "nine", without("layers.1."))) == (
        "LlamaForCausalLM: model.layers.1.input_layernorm.weight, model.layers.1.mlp.down_proj.weight, "
        "model.layers.1.mlp.gate_proj.weight and 6 more are not in it, and would be random numbers"
    )


def test_tensors_of_another_shape_are_refused_with_both_shapes(tmp_path: Path) -> None:
    said = refused(changed(tmp_path / "m", lambda tensors: tensors, vocab_size=300))
    assert said == (
        "LlamaForCausalLM: lm_head.weight (264×32, where config.json asks for 300×32), "
        "model.embed_tokens.weight (264×32, where config.json asks for 300×32) are of another shape there"
    )


def test_a_bias_for_which_the_config_makes_no_place_is_refused(tmp_path: Path) -> None:
    """The model would be computed without it."""
    assert refused(changed(tmp_path / "m", plus("model.layers.0.self_attn.q_proj.bias"))) == (
        "LlamaForCausalLM: model.layers.0.self_attn.q_proj.bias is in it, for which config.json makes no place"
    )


def test_what_is_left_over_elsewhere_is_counted_and_named(tmp_path: Path) -> None:
    more = plus("score.weight", "mtp.layers.0.weight", "mtp.layers.1.weight", "model.layers.2.mlp.up_proj.weight")
    _, notes = loaded(changed(tmp_path / "m", more))
    (said,) = notes
    assert said.endswith(
        "4 tensors of the checkpoint are no part of a LlamaForCausalLM and left out: "
        "model.layers.*.mlp.up_proj.weight, mtp.layers.*.weight, score.weight"
    )
    _, notes = loaded(changed(tmp_path / "one", plus("score.weight")))
    assert notes[0].endswith("1 tensor of the checkpoint is no part of a LlamaForCausalLM and left out: score.weight")


def test_a_whole_checkpoint_says_nothing(tmp_path: Path) -> None:
    for name, model in (("llama", None), ("gpt2", tiny.gpt2()), ("gemma2", tiny.gemma2()), ("qwen2", tiny.qwen2())):
        assert loaded(changed(tmp_path / name, lambda tensors: tensors, model))[1] == []


def test_a_task_may_let_its_own_head_be_new(tmp_path: Path) -> None:
    """The seam: what is new is handed back, to be trained and saved; all else is refused as before."""
    model = tiny.llama()
    info = {"missing_keys": {"score.weight"}, "mismatched_keys": set(), "unexpected_keys": set()}
    assert whole.check("m", info, model, pytest.fail, lambda name: name.startswith("score")) == ["score.weight"]
    resized = {**info, "missing_keys": set(), "mismatched_keys": {("score.weight", (2, 32), (3, 32))}}
    assert whole.check("m", resized, model, pytest.fail, lambda name: name.startswith("score")) == ["score.weight"]
    more = {**info, "missing_keys": {"score.weight", "model.norm.weight"}}
    with pytest.raises(UsageError, match=r"a LlamaForCausalLM: model\.norm\.weight is not in it"):
        whole.check("m", more, model, pytest.fail, lambda name: name.startswith("score"))


def test_training_publishes_nothing_on_half_a_model(tmp_path: Path) -> None:
    folder = changed(tmp_path / "m", without("lm_head"))
    with pytest.raises(UsageError, match=r"lm_head\.weight is not in it"):
        jobs.train(tmp_path, folder)
    assert not (tmp_path / "run" / "adapter").exists()


def test_what_a_run_of_text_leaves_over_is_said_once_as_a_warning(tmp_path: Path) -> None:
    folder = changed(tmp_path / "m", plus("score.weight"))
    _, events = jobs.train(tmp_path, folder)
    said = [event["message"] for event in events if event["event"] == "warning"]
    assert len([text for text in said if "left out: score.weight" in text]) == 1
