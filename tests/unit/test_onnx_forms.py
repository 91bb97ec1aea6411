"""Which models become which graphs, and which are refused by name, from their config alone."""

from __future__ import annotations

import re
from typing import Any

import pytest

from peftctl.onnx.decoder import Decoder
from peftctl.onnx.forms import form, unfit
from peftctl.onnx.one_pass import OnePass
from peftctl.onnx.seq2seq import Seq2Seq
from peftctl.tasks import TASKS
from tests import tiny


def config(kind: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **changes)


@pytest.mark.parametrize("task", sorted(TASKS))
def test_every_task_has_a_form(task: str) -> None:
    kind = "t5" if task == "seq2seq_lm" else "llama"
    wanted = {"causal_lm": Decoder, "seq2seq_lm": Seq2Seq}.get(task, OnePass)
    assert isinstance(form(TASKS[task], config(kind)), wanted)
    assert not unfit(TASKS[task], config(kind))


@pytest.mark.parametrize(("kind", "changes", "said"), [
    ("mixtral", {}, "mixtral models send every token to experts"),
    ("qwen3_moe", {}, "qwen3_moe models send every token to experts"),
    ("deepseek_v3", {}, "deepseek_v3 models send every token to experts"),
    ("mamba", {}, "mamba models remember a text otherwise than by keys and values"),
    ("lfm2", {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}, r"otherwise .* \(conv\)"),
    ("gemma3", {}, "gemma3 models read more than text"),
    ("qwen2_vl", {}, "qwen2_vl models read more than text"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, r"\(dynamic\)"),
    ("llama", {"auto_map": {"AutoModelForCausalLM": "own.Model"}}, "llama models bring code of their own"),
])  # fmt: skip
def test_what_no_graph_can_do_is_refused_by_name(kind: str, changes: dict[str, Any], said: str) -> None:
    assert re.search(said, unfit(TASKS["causal_lm"], config(kind, **changes)))


def test_longrope_is_refused() -> None:
    factors = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    made = config("phi3", **tiny.SIZES, rope_parameters=factors, original_max_position_embeddings=256)
    assert "positions (longrope)" in unfit(TASKS["causal_lm"], made)


def test_what_reads_once_may_remember_as_it_likes() -> None:
    assert not unfit(TASKS["feature_extraction"], config("mamba"))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2", "gemma3_text", "mistral", "qwen3", "opt", "bloom", "phi3"])
def test_what_keeps_keys_and_values_is_taken(kind: str) -> None:
    assert not unfit(TASKS["causal_lm"], config(kind))
