"""Models whose tokens see those after them: found out by trying, and refused where a task must not have them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peftctl.errors import RecipeError, UsageError
from peftctl.methods import METHODS, DataFacts
from peftctl.model import attach, causal, load, preflight, targets
from peftctl.recipe import check
from peftctl.tasks import TASKS
from tests import jobs, tiny

TASK = TASKS["causal_lm"]


def bert(**changes: Any) -> Any:
    from transformers import BertConfig

    sizes: dict[str, Any] = {
        "vocab_size": 264, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "max_position_embeddings": 512, "pad_token_id": 258,
    }  # fmt: skip
    return BertConfig(**(sizes | changes))


def xlnet() -> Any:
    from transformers import XLNetConfig

    return XLNetConfig(vocab_size=264, d_model=32, n_layer=2, n_head=4, d_inner=64, pad_token_id=258)


def made(config: Any) -> Any:
    torch.manual_seed(0)
    return TASK.model_class().from_config(config).requires_grad_(False).eval()


MODELS: dict[str, tuple[Any, bool]] = {
    "bert": (lambda: made(bert()), True),
    "bert as a decoder": (lambda: made(bert(is_decoder=True)), False),
    "xlnet": (lambda: made(xlnet()), True),
    "llama": (tiny.llama, False),
    "gpt2": (tiny.gpt2, False),
    "gemma2": (tiny.gemma2, False),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_is_found_out_as_changing_the_last_token_shows_it(name: str) -> None:
    make, ahead = MODELS[name]
    model = make().eval()
    ids = torch.randint(0, 250, (1, 9))
    other = ids.clone()
    other[0, -1] = 251
    with torch.no_grad():
        before, after = (model(input_ids=each).logits[:, :-1] for each in (ids, other))
    assert bool((before - after).abs().max() > 1e-4) is ahead
    assert causal.looks_ahead(model) is ahead
    assert causal.looks_ahead(model.to(torch.bfloat16)) is ahead


def test_trying_leaves_nothing_behind() -> None:
    model = tiny.llama().eval()
    state = torch.random.get_rng_state()
    causal.looks_ahead(model)
    causal.kind_looks_ahead(bert(), TASK)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.get_input_embeddings()._forward_hooks


@pytest.mark.parametrize("method", ["lora", "prompt_tuning", "ln_tuning"])
@pytest.mark.parametrize(("make", "ahead"), [(lambda: made(bert()), True), (tiny.llama, False)])
def test_it_is_found_out_beside_an_adapter_too(method: str, make: Any, ahead: bool) -> None:
    model, found = make(), METHODS[method]
    settings = found.resolve(found.settings(name=method))
    anatomy = attach.anatomy(model, targets.of(model, found, settings), found.beside(model, settings))
    model = attach.attach(
        model.requires_grad_(False), found, settings, anatomy, "CAUSAL_LM", DataFacts(8, 99, 9, 20, 3)
    )
    assert causal.looks_ahead(model.eval()) is ahead


def test_a_kind_is_tried_on_a_small_copy() -> None:
    assert causal.kind_looks_ahead(bert(num_hidden_layers=24, vocab_size=100_000, pad_token_id=2000), TASK)
    assert not causal.kind_looks_ahead(bert(is_decoder=True), TASK)
    assert not causal.kind_looks_ahead(tiny.llama().config, TASK)


def test_training_refuses_it_before_weights_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("weights were loaded"))
    folder = tiny.save(tmp_path / "model", made(bert()))
    with pytest.raises(UsageError) as refused:
        jobs.train(tmp_path, folder)
    assert refused.value.message == (
        f"model.name: {folder} is a BertLMHeadModel, whose tokens see those after them, and causal_lm learns each "
        "token from those before it; allowed: a model with causal attention"
    )
    assert "is_decoder: true" in refused.value.hint


def test_training_refuses_it_with_its_weights_where_the_config_did_not_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal, "kind_looks_ahead", lambda *_: False)
    folder = tiny.save(tmp_path / "model", made(bert()))
    with pytest.raises(UsageError, match="BertLMHeadModel, whose tokens see those after them"):
        jobs.train(tmp_path, folder)
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_task_that_reads_whole_rows_may_have_it() -> None:
    class Whole:
        name, causal = "sorting", False

    causal.check("m", made(bert()), Whole(), True)  # type: ignore[arg-type]  # as much of a task as is asked


def test_such_a_model_said_to_be_a_decoder_trains(tmp_path: Path) -> None:
    notes: list[str] = []
    found = METHODS["lora"]
    preflight.check("m", bert(is_decoder=True), TASK, found, found.resolve(found.settings(name="lora")), notes.append)
    assert notes == []


def test_check_refuses_it_by_its_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    from peftctl.tables import table

    made = {**table("model_types"), "encoders": {"causal_lm": ["bert"]}}
    monkeypatch.setattr(importlib.import_module("peftctl.recipe.check"), "table", lambda _: made)
    config = tmp_path / "model" / "config.json"
    config.parent.mkdir()
    config.write_text(json.dumps({"model_type": "bert"}))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: ./model\ndata: {train: t.jsonl}\nmethod: lora\noutput: out\n")
    with pytest.raises(
        RecipeError, match=r"recipe\.yaml:1:1: model\.name: lets tokens see those after them"
    ) as refused:
        check(recipe)
    assert "allowed: a model whose config.json says is_decoder: true" in refused.value.message
    config.write_text(json.dumps({"model_type": "bert", "is_decoder": True}))
    check(recipe)
