"""vLLM's rules, case by case: what is refused of an adapter, and what is not."""

from __future__ import annotations

from typing import Any

import pytest

from peftctl.exporters import vllm_rules as rules

LAYER = "base_model.model.model.layers.0"
PLAIN: dict[str, tuple[int, ...]] = {
    f"{LAYER}.self_attn.q_proj.lora_A.weight": (8, 32),
    f"{LAYER}.self_attn.q_proj.lora_B.weight": (32, 8),
}
CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "bias": "none", "init_lora_weights": True}
EMBEDDING: dict[str, tuple[int, ...]] = {
    "base_model.model.model.embed_tokens.lora_embedding_A": (8, 264),
    "base_model.model.model.embed_tokens.lora_embedding_B": (32, 8),
}
HEAD: dict[str, tuple[int, ...]] = {
    "base_model.model.lm_head.lora_A.weight": (8, 32),
    "base_model.model.lm_head.lora_B.weight": (264, 8),
}


def adapter(tensors: dict[str, tuple[int, ...]] | None = None, **config: Any) -> rules.Adapter:
    return rules.Adapter({**CONFIG, **config}, {**PLAIN, **(tensors or {})})


@pytest.mark.parametrize(
    "taken",
    [
        adapter(),
        adapter(r=512),
        adapter(use_rslora=True),
        adapter(rank_pattern={"^q_proj": 64}, alpha_pattern={"^q_proj": 8.0}),
        adapter(init_lora_weights="gaussian"),
        adapter(init_lora_weights="orthogonal"),
        adapter(init_lora_weights=False),
        adapter(modules_to_save=None, lora_bias=False, use_dora=False, target_parameters=None, layer_replication=None),
        adapter(EMBEDDING | HEAD),
    ],
    ids=lambda each: str({**each.config, "tensors": len(each.shapes)}),
)
def test_what_vllm_takes_is_not_refused(taken: rules.Adapter) -> None:
    assert list(rules.refused(taken)) == []
    assert list(rules.refused_on(taken, "LlamaForCausalLM", 264)) == []


@pytest.mark.parametrize(
    ("refused", "said"),
    [
        (adapter(peft_type="LOHA"), "the method LOHA; allowed: LORA"),
        (adapter(peft_type="ADALORA"), "the method ADALORA"),
        (adapter(modules_to_save=["lm_head"]), "trained whole (modules_to_save)"),
        (adapter(use_dora=True), "DoRA"),
        (adapter(lora_bias=True), "a trained bias (lora_bias)"),
        (adapter(bias="lora_only"), "bias: lora_only"),
        (adapter(alora_invocation_tokens=[1]), "activated LoRA"),
        (adapter(layer_replication=[[0, 1]]), "layer_replication"),
        (adapter(use_bdlora={"nblocks": 2}), "block-diagonal"),
        (adapter(use_qalora=True), "QALoRA"),
        (adapter(trainable_token_indices={"embed_tokens": [5]}), "trainable_tokens"),
        (adapter(target_parameters=["mlp.experts.down_proj"]), "experts' weights"),
        (adapter(init_lora_weights="pissa"), "init_lora_weights: pissa"),
        (adapter(init_lora_weights="olora"), "init_lora_weights: olora"),
        (adapter(r=513), "the rank 513; allowed: up to 512"),
        (adapter(rank_pattern={"^q_proj": 1024}), "the rank 1024"),
        (adapter({f"{LAYER}.self_attn.q_proj.lora_magnitude_vector.weight": (32,)}), "no A and no B"),
        (adapter({f"{LAYER}.self_attn.q_proj.lora_B.bias": (32,)}), "no A and no B"),
        (adapter({"base_model.model.model.norm.weight": (32,)}), "no A and no B"),
        (adapter({"base_model.model.model.visual.blocks.0.qkv.lora_A.weight": (8, 32)}), "outside of the language"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_vllm_refuses_or_would_leave_out_is_refused(refused: rules.Adapter, said: str) -> None:
    found = list(rules.refused(refused))
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize(
    ("refused", "architecture", "vocabulary", "said"),
    [
        (adapter(), "GPT2LMHeadModel", 264, "any adapter on GPT2LMHeadModel"),
        (adapter(), "BloomForCausalLM", 264, "any adapter on BloomForCausalLM"),
        (adapter(), "LlamaForCausalLM", 258_049, "vocabulary is so large (258,049); allowed: up to 258,048"),
        (adapter(HEAD), "MistralForCausalLM", 264, "an adapter on lm_head of MistralForCausalLM"),
        (adapter(EMBEDDING), "Qwen2ForCausalLM", 264, "an adapter on embed_tokens of Qwen2ForCausalLM"),
        (adapter(EMBEDDING), "LlamaForCausalLM", 260, "264 tokens on a base of 260: added tokens"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_what_the_base_does_not_take_is_refused(
    refused: rules.Adapter, architecture: str, vocabulary: int, said: str
) -> None:
    found = list(rules.refused_on(refused, architecture, vocabulary))
    assert len(found) == 1
    assert said in found[0]


def test_a_vocabulary_of_the_largest_size_is_taken() -> None:
    assert list(rules.refused_on(adapter(), "LlamaForCausalLM", 258_048)) == []


@pytest.mark.parametrize(
    ("rank", "least"), [(1, 1), (2, 8), (8, 8), (9, 16), (17, 32), (65, 128), (257, 320), (512, 512), (513, None)]
)
def test_the_flag_for_a_rank_is_the_least_that_takes_it(rank: int, least: int | None) -> None:
    assert rules.max_lora_rank(rank) == least


def test_the_rank_is_the_largest_of_any_target() -> None:
    assert adapter(rank_pattern={"^q_proj": 64, "^k_proj": 2}).rank == 64
    assert (adapter(rank_pattern={"^q_proj": 4}).rank, adapter(alpha_pattern={}).patterned) == (8, False)


@pytest.mark.parametrize(
    ("architecture", "task", "why"),
    [
        ("LlamaForCausalLM", "causal_lm", ""),
        ("GPT2LMHeadModel", "causal_lm", ""),
        ("BloomForCausalLM", "causal_lm", ""),
        ("OwnCodeForCausalLM", "causal_lm", ""),
        ("LlamaForSequenceClassification", "seq_cls", ""),
        ("BloomForSequenceClassification", "seq_cls", ""),
        ("BertForSequenceClassification", "seq_cls", ""),
        ("BertForTokenClassification", "token_cls", ""),
        ("LlamaModel", "feature_extraction", ""),
        ("LlamaForCausalLM", "feature_extraction", ""),
        ("MptForCausalLM", "causal_lm", "no MptForCausalLM since 0.28.0"),
        ("CodeGenForCausalLM", "causal_lm", "its Transformers backend cannot run"),
        ("DebertaV2ForSequenceClassification", "seq_cls", "its Transformers backend cannot run"),
        ("LlamaForTokenClassification", "token_cls", "and no LlamaForTokenClassification"),
        ("BertForMaskedLM", "feature_extraction", "makes no vectors with BertForMaskedLM"),
        ("T5ForConditionalGeneration", "seq2seq_lm", "no models for seq2seq_lm"),
        ("BertForQuestionAnswering", "question_answering", "no models for question_answering"),
    ],
)
def test_what_vllm_serves(architecture: str, task: str, why: str) -> None:
    found = rules.unserved(architecture, task)
    assert bool(found) == bool(why)
    assert why in found
