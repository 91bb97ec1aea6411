"""What goes into GGUF files: names, settings, factors, tokens; and what has no place in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from peftctl.errors import MachineError, UsageError, VerificationError
from peftctl.gguf import families, rotary, runtime, settings, splits, texts, vocabulary, writer
from tests import tiny
from tests.unit import gguf_models


def config(kind: str, **changes: Any) -> Any:
    from transformers import AutoConfig

    return AutoConfig.for_model(kind, **{**gguf_models.SIZES, "vocab_size": 300, **changes})


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("gpt_neox", {}, "gpt_neox was not seen to work in llama.cpp"),
        ("qwen3", {"hidden_act": "gelu"}, "hidden_act is gelu in this model, and silu in llama.cpp's code"),
        ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 99}, "query_pre_attn_scalar is 99 in this model, and 32"),
        ("gemma2", {"head_dim": 32, "query_pre_attn_scalar": 32, "attn_logit_softcapping": None}, "is none"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob is False in this model, and True"),
        ("qwen3_moe", {"norm_topk_prob": True, "mlp_only_layers": [1]}, "mlp_only_layers is [1]"),
        ("smollm3", {"no_rope_layers": [1, 1, 1]}, ""),
        ("smollm3", {"no_rope_layers": [0, 1, 1]}, "no_rope_layers is [0, 1, 1] in this model, and [1, 1, 1]"),
    ],
)
def test_what_llama_cpp_has_in_its_code_is_held_against_the_model(
    kind: str, changes: dict[str, Any], said: str
) -> None:
    made = config(kind, **changes)
    if not said:
        families.family(made).more(made)
        return
    with pytest.raises(UsageError) as error:
        families.family(made).more(made)
    assert said in error.value.message


@pytest.mark.parametrize(
    ("rope", "said"),
    [
        ({"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}, "scaled by 'dynamic'"),
        (
            {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "mscale": 1.0},
            "say mscale, which llama.cpp does not",
        ),
    ],
)
def test_positions_scaled_in_a_way_llama_cpp_has_not_are_refused(rope: dict[str, Any], said: str) -> None:
    class Config:
        rope_parameters = rope
        max_position_embeddings = 64

    with pytest.raises(UsageError, match=said):
        rotary.rotary(Config, 16)


def test_llama3_factors_are_those_that_transformers_divides_frequencies_by() -> None:
    import torch
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    made = config("llama", rope_parameters=gguf_models.LLAMA3, head_dim=32)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](made, "cpu")
    plain = 1.0 / 10000.0 ** (torch.arange(0, 32, 2) / 32)
    factors = rotary.rotary(made, 32).factors["rope_freqs.weight"]
    torch.testing.assert_close(plain / scaled, torch.tensor(factors), rtol=1e-5, atol=0)
    assert len(set(factors)) > 3


def test_a_window_that_llama_cpp_does_not_know_bounds_the_context() -> None:
    heard: list[str] = []
    made = config("mistral", sliding_window=128)
    found = settings.settings(made, families.family(made), rotary.rotary(made, 16), heard.append)
    assert found["context_length"] == 128
    assert "attends to 128 tokens back" in heard[0]
    made = config("gemma2", head_dim=32, query_pre_attn_scalar=32, sliding_window=24)
    found = settings.settings(made, families.family(made), rotary.rotary(made, 32), heard.append)
    assert (found["context_length"], found["attention.sliding_window"]) == (512, 24)
    assert found["attention.sliding_window_pattern"] == [True, False, True]
    assert len(heard) == 1


def test_rows_of_a_heads_halves_become_neighbours() -> None:
    import torch

    value = torch.arange(8.0)[:, None].repeat(1, 3)
    assert writer.interleaved(value, 4)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_tokens_have_their_kinds_and_merges_their_order() -> None:
    made = gguf_models.tokenizer("smollm")
    found = vocabulary.vocabulary(made, len(made) + 3)
    assert (found.model, found.split) == ("gpt2", "smollm")
    assert found.kinds[made.convert_tokens_to_ids("<|im_end|>")] == vocabulary.CONTROL
    assert found.kinds[made.convert_tokens_to_ids("<tool>")] == vocabulary.USER_DEFINED
    assert found.kinds[-3:] == [vocabulary.UNUSED] * 3
    assert found.tokens[-1] == f"[PAD{len(made) + 2}]"
    assert found.special["eos"] == made.eos_token_id
    first = json.loads(made.backend_tokenizer.to_str())["model"]["merges"][0]
    assert found.merges[0] == " ".join(first)


@pytest.mark.parametrize(("kind", "first"), [("spaced", True), ("unspaced", False)])
def test_of_sentencepiece_the_merge_that_comes_first_scores_best(kind: str, first: bool) -> None:
    made = gguf_models.tokenizer(kind)
    found = vocabulary.vocabulary(made, len(made))
    assert (found.model, found.space_first, found.add_bos) == ("llama", first, True)
    assert found.kinds[made.convert_tokens_to_ids("<0x0A>")] == vocabulary.BYTE
    assert found.kinds[0] == vocabulary.UNKNOWN
    merges = json.loads(made.backend_tokenizer.to_str())["model"]["merges"]
    scores = [found.scores[made.convert_tokens_to_ids("".join(pair))] for pair in merges[:40]]
    assert scores == sorted(scores, reverse=True)


def test_a_tokenizer_that_llama_cpp_cuts_otherwise_is_refused() -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def of(core: Any) -> Any:
        return PreTrainedTokenizerFast(tokenizer_object=core)

    with pytest.raises(UsageError, match="joins tokens by WordPiece"):
        vocabulary.vocabulary(tiny.wordpieces(["a"]), 300)
    core = Tokenizer(models.BPE({"a": 0}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.normalizer = normalizers.Lowercase()
    with pytest.raises(UsageError, match=r"changes texts first \(Lowercase\)"):
        vocabulary.vocabulary(of(core), 10)
    core.normalizer = None
    (tekken,) = (steps for steps, name in splits.NO_MARKS.items() if name == "tekken")
    from tokenizers import Regex

    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(tekken[0]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    with pytest.raises(UsageError, match="tekken cuts words with combining marks otherwise"):
        vocabulary.vocabulary(of(core), 10)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(UsageError, match="ids up to 0, and the model's embedding 0 rows"):
        vocabulary.vocabulary(of(core), 0)


def test_positions_are_as_many_as_asked_for_in_rows_of_a_length() -> None:
    rows = texts.positions(gguf_models.tokenizer("smollm"), 200, 96)
    assert sum(map(len, rows)) == 200
    assert max(map(len, rows)) == 96


def test_what_ends_llama_cpp_ends_no_more_than_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VerificationError, match="does not take what was written"):
        runtime.run({"do": "ask", "path": "/nowhere", "rows": [], "prompts": [], "most": 1}, tmp_path)
    monkeypatch.setattr(runtime, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="not installed"):
        runtime.run({}, tmp_path)
