"""Models of real shapes from their configs alone, held against transformers' own counts and PEFT's."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peftctl.errors import UsageError
from peftctl.inspection import child, coverage, groups
from peftctl.inspection.architecture import architecture
from peftctl.inspection.blueprint import build
from peftctl.inspection.facts import Architecture
from peftctl.inspection.model import read_architecture
from peftctl.model import causal
from peftctl.tasks import TASKS
from tests import tiny

LLAMA_70B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672,
    "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "rope_theta": 500000.0,
}  # fmt: skip
LLAMA_1B = {
    **LLAMA_70B, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "tie_word_embeddings": True,
}  # fmt: skip
MIXTRAL_8X7B = {
    "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000,
    "num_local_experts": 8, "num_experts_per_tok": 2, "torch_dtype": "bfloat16",
}  # fmt: skip
QWEN3_235B = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 4096, "head_dim": 128,
    "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_hidden_layers": 94, "num_attention_heads": 64,
    "num_key_value_heads": 4, "num_experts": 128, "num_experts_per_tok": 8, "vocab_size": 151936,
    "tie_word_embeddings": False, "mlp_only_layers": [], "decoder_sparse_step": 1,
}  # fmt: skip
GPT2 = {
    "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12,
    "n_positions": 1024, "vocab_size": 50257,
}  # fmt: skip
GEMMA2_2B = {
    "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216,
    "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000,
}  # fmt: skip
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208,
    },
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": 1152, "image_size": 896, "intermediate_size": 4304,
        "num_attention_heads": 16, "num_hidden_layers": 27, "patch_size": 14, "vision_use_head": False,
    },
}  # fmt: skip
QWEN2_VL_2B = {
    "architectures": ["Qwen2VLForConditionalGeneration"], "model_type": "qwen2_vl", "hidden_size": 1536,
    "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2,
    "vocab_size": 151936, "tie_word_embeddings": True,
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "patch_size": 14},
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}  # fmt: skip
T5_SMALL = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 512, "d_ff": 2048, "d_kv": 64,
    "num_heads": 8, "num_layers": 6, "vocab_size": 32128, "is_encoder_decoder": True,
}  # fmt: skip
BERT_BASE = {
    "architectures": ["BertForMaskedLM"], "model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12,
    "num_attention_heads": 12, "intermediate_size": 3072, "vocab_size": 30522,
}  # fmt: skip
# What their authors give as the number of parameters, or what follows from the papers' tables, to the last one.
PARAMETERS = {
    "llama-3-70b": (LLAMA_70B, 70_553_706_496),
    "llama-3.2-1b": (LLAMA_1B, 1_235_814_400),
    "mixtral-8x7b": (MIXTRAL_8X7B, 46_702_792_704),
    "qwen3-235b": (QWEN3_235B, 235_093_634_560),
    "gpt2": (GPT2, 124_439_808),
    "gemma-2-2b": (GEMMA2_2B, 2_614_341_888),
    "gemma-3-4b": (GEMMA3_4B, 4_300_079_472),
    "qwen2-vl-2b": (QWEN2_VL_2B, 2_208_985_600),
    "t5-small": (T5_SMALL, 60_506_624),
    "bert-base": (BERT_BASE, 109_514_298),
}


def facts(settings: dict[str, Any], **asked: Any) -> Architecture:
    return architecture(build(settings), **asked)


@pytest.mark.parametrize(("settings", "parameters"), PARAMETERS.values(), ids=PARAMETERS)
def test_models_of_real_shapes_have_the_parameters_they_are_known_for(
    settings: dict[str, Any], parameters: int
) -> None:
    model = build(settings).model
    assert type(model).__name__ == settings["architectures"][0]
    assert model.num_parameters() == parameters == sum(groups.by_kind(model).values())


def test_a_model_from_its_config_is_the_model_that_is_loaded(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for made in (tiny.llama(), tiny.llama(tie_word_embeddings=False), tiny.gpt2(), tiny.gemma2(), tiny.qwen3()):
        folder = tiny.save(tmp_path / type(made).__name__ / str(made.num_parameters()), made)
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        model = build(json.loads((folder / "config.json").read_text())).model
        assert model.num_parameters() == loaded.num_parameters()
        assert [(name, p.shape) for name, p in model.named_parameters()] == [
            (name, p.shape) for name, p in loaded.named_parameters()
        ]
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


def test_a_class_is_the_declared_one_and_tasks_say_what_they_would_build() -> None:
    assert facts({**BERT_BASE, "is_decoder": True}).tasks["causal_lm"] == "BertLMHeadModel"
    assert facts(BERT_BASE).tasks == {
        "seq_cls": "BertForSequenceClassification",
        "token_cls": "BertForTokenClassification",
        "question_answering": "BertForQuestionAnswering",
        "feature_extraction": "BertModel",
    }
    assert facts(LLAMA_1B).tasks == {  # transformers has a class for answers that finds none of its weights
        "causal_lm": "LlamaForCausalLM",
        "seq_cls": "LlamaForSequenceClassification",
        "token_cls": "LlamaForTokenClassification",
        "feature_extraction": "LlamaModel",
    }
    assert facts({**LLAMA_1B, "architectures": ["LlamaForSequenceClassification"]}).class_name.endswith(
        "Classification"
    )
    assert facts({**LLAMA_1B, "architectures": ["NoSuchModel"]}).class_name == "LlamaForCausalLM"
    assert facts({**LLAMA_1B, "architectures": ["BertModel"]}).class_name == "LlamaForCausalLM"
    assert facts(T5_SMALL).tasks == {
        "seq2seq_lm": "T5ForConditionalGeneration",
        "seq_cls": "T5ForSequenceClassification",
        "token_cls": "T5ForTokenClassification",
        "question_answering": "T5ForQuestionAnswering",
        "feature_extraction": "T5EncoderModel",
    }
    vision = {"model_type": "vit", "num_hidden_layers": 2}
    assert facts(vision).class_name == "ViTModel"
    assert facts({"model_type": "t5", "num_layers": 2}).class_name == "T5ForConditionalGeneration"


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ENCODERS: dict[str, tuple[dict[str, Any], bool]] = {
    "bert": ({**BERT_BASE, **SMALL}, False),
    "bert that decodes": ({**BERT_BASE, **SMALL, "is_decoder": True}, True),
    "roberta": ({"model_type": "roberta", "num_hidden_layers": 2}, False),
    "xlnet": ({"model_type": "xlnet", "n_layer": 2, "d_model": 64, "n_head": 4, "d_inner": 64}, False),
    "decoder of bart": ({"model_type": "bart", "encoder_layers": 2, "decoder_layers": 2}, True),
    "llama": (LLAMA_1B, True),
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_only_a_model_that_does_not_see_the_next_token_is_for_causal_lm(kind: str) -> None:
    settings, able = ENCODERS[kind]
    found = build(settings)
    assert ("causal_lm" in found.tasks) is able
    from transformers import AutoConfig

    config = AutoConfig.for_model(**settings)
    if found.model.num_parameters() < 200_000_000:  # what a run would find out with weights
        assert causal.kind_looks_ahead(config, TASKS["causal_lm"]) is not able


def test_a_classifier_s_layers_are_in_no_all_linear() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    for kind, name, own in (
        ("bert", "BertForSequenceClassification", 13),
        ("llama", "LlamaForSequenceClassification", 14),
    ):
        found = facts({"model_type": kind, "architectures": [name], "vocab_size": 64, **sizes})
        assert any(group.name in ("classifier", "score") for group in found.groups)
        assert (found.choices[0].name, found.choices[0].modules) == ("all-linear", own)


def test_counts_are_of_the_class_that_training_builds() -> None:
    sizes = {"model_type": "llama", **SMALL, "vocab_size": 64}
    for name in ("LlamaForSequenceClassification", "LlamaModel"):
        found = facts({**sizes, "architectures": [name]})
        assert found.class_name == name
        assert found.counts == facts({**sizes, "architectures": ["LlamaForCausalLM"]}).counts


def test_what_cannot_be_trained_has_a_reason_and_no_number() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": 64}
    mamba = {count.method: count for count in facts({"model_type": "mamba", **sizes}).counts}
    for method, said in (
        ("lora", "PEFT puts none on out_proj in mamba"),
        ("prefix_tuning", "trains nothing in this model"),
        ("adaption_prompt", "for some types of model only, and it was not tried on mamba"),
        ("trainable_tokens", "needs settings that have no default"),
        ("xlora", "needs settings that have no default"),
    ):
        assert mamba[method].trained == {}
        assert said in mamba[method].why_not
    assert mamba["loha"].trained
    llama = {count.method: count.trained for count in facts(LLAMA_1B).counts}
    assert llama["adaption_prompt"]
    conv = {"model_type": "openai-gpt", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}
    found = {count.method: count for count in facts(conv).counts}
    assert "Conv1D" in found["loha"].why_not
    assert found["lora"].trained


@pytest.mark.parametrize("method", ["lora", "adalora"])
def test_what_peft_refuses_in_a_state_space_model_is_what_is_said(method: str) -> None:
    from peft import AdaLoraConfig, LoraConfig, get_peft_model

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4, "vocab_size": 64}
    config = {
        "lora": lambda name: LoraConfig(target_modules=[name]),
        "adalora": lambda name: AdaLoraConfig(target_modules=[name], total_step=9, tinit=1, tfinal=1),
    }[method]
    for name in ("in_proj", "x_proj", "out_proj"):
        model = build({"model_type": "mamba", **sizes}).model
        if name in coverage.STATE_SPACE_LAYERS:
            with pytest.raises(ValueError, match="incompatible with Mamba"):
                get_peft_model(model, config(name))
        else:
            get_peft_model(model, config(name))


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.gemma2, tiny.qwen3])
def test_weights_that_are_a_config_s_own_are_told_from_others(make: Callable[[], Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    made = make()
    folder = tiny.save(tmp_path / "it", made)
    settings = json.loads((folder / "config.json").read_text())
    own = {name: list(each.shape) for name, each in load_file(folder / "model.safetensors").items()}
    prefix = made.base_model_prefix + "."
    for names in (own, {name.removeprefix(prefix): shape for name, shape in own.items()}):
        assert architecture(build(settings), stored=names).strange == ()
    first = next(name for name in own if name.endswith(("model.norm.weight", "ln_f.weight")))
    (said,) = architecture(build(settings), stored={name: own[name] for name in own if name != first}).strange
    assert said == f"1 tensor of the model missing: {first}"
    (said,) = architecture(build(settings), stored={**own, first: [1, 2]}).strange
    assert said == f"1 tensor of another shape: {first} is [1, 2], and {own[first]} by the config"
    (said,) = architecture(build(settings), stored={**own, "model.layers.9.x.weight": [1]}).strange
    assert said == "1 tensor that the model has no place for: model.layers.9.x.weight"
    unsaid = {**settings, "architectures": None}
    assert architecture(build(unsaid), stored={name: own[name] for name in own if name != first}).strange == ()


def test_weights_that_are_renamed_when_they_are_read_are_not_judged() -> None:
    from tests import experts

    model = experts.mixtral()
    settings = {**model.config.to_dict(), "architectures": ["MixtralForCausalLM"]}
    assert (
        architecture(build(settings), stored={"model.layers.0.block_sparse_moe.experts.0.w1.weight": [1]}).strange == ()
    )


def test_code_that_a_config_brings_is_not_run_where_transformers_knows_the_model(tmp_path: Path) -> None:
    own = {"auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}}
    assert facts({**LLAMA_1B, **own}).class_name == "LlamaForCausalLM"
    with pytest.raises(
        UsageError, match=r"knows no 'lama'; it brings its own code \(auto_map\), which is not run here"
    ):
        build({**LLAMA_1B, **own, "model_type": "lama"})
    with pytest.raises(UsageError) as error:
        build({"model_type": "lama"})
    assert error.value.hint == "did you mean llama?"


@pytest.mark.parametrize(
    "odd",
    [
        {"hidden_size": "wide"},
        {"hidden_size": -8},
        {"num_attention_heads": 0},
        {"hidden_size": 2**62, "intermediate_size": 2**62},
        {"vocab_size": None},
        {"rope_scaling": {"rope_type": "nonsense", "factor": 2.0}},
        {"hidden_act": "nonsense"},
        {"torch_dtype": "nonsense"},
    ],
)
def test_a_config_of_nonsense_is_refused_in_a_line(odd: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as error:
        build({**LLAMA_1B, **odd})
    assert "\n" not in error.value.message


def test_how_weights_are_packed_is_nothing_to_the_architecture() -> None:
    packed = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}}
    assert facts({**LLAMA_1B, **packed}).parameters == PARAMETERS["llama-3.2-1b"][1]


def lora_by_hand(rank: int) -> int:
    """Llama-3-70B's all-linear: every projection of each of 80 layers."""
    attention = 2 * (8192 + 8192) + 2 * (8192 + 1024)
    return 80 * rank * (attention + 3 * (8192 + 28672))


def test_counts_of_a_70b_follow_the_formulas() -> None:
    counts = {count.method: count.trained for count in facts(LLAMA_70B).counts}
    assert counts["lora"] == {rank: lora_by_hand(rank) for rank in (8, 16, 64)}
    assert counts["prompt_tuning"] == {tokens: tokens * 8192 for tokens in (8, 16, 64)}
    assert counts["prefix_tuning"] == {tokens: tokens * 80 * 2 * 1024 for tokens in (8, 16, 64)}
    assert counts["ia3"] == {0: 80 * (1024 + 1024 + 28672)}


def configs(targets: list[str]) -> dict[str, Callable[[int], Any]]:
    """PEFT's own configs, written by hand, of the same settings as each method's defaults at a size."""
    import peft

    common: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    linear = {**common, "target_modules": targets}
    transposed = {"fan_in_fan_out": "c_attn" in targets}
    scaled = ["c_attn", "mlp.c_proj"] if "c_attn" in targets else ["k_proj", "v_proj", "down_proj"]
    return {
        "lora": lambda size: peft.LoraConfig(r=size, **linear, **transposed),
        "adalora": lambda size: peft.AdaLoraConfig(
            init_r=-(-3 * size // 2), target_r=size, total_step=100, tinit=10, tfinal=30, **linear, **transposed
        ),
        "loha": lambda size: peft.LoHaConfig(r=size, **linear),
        "lokr": lambda size: peft.LoKrConfig(r=size, **linear),
        "prompt_tuning": lambda size: peft.PromptTuningConfig(num_virtual_tokens=size, **common),
        "p_tuning": lambda size: peft.PromptEncoderConfig(num_virtual_tokens=size, encoder_hidden_size=128, **common),
        "prefix_tuning": lambda size: peft.PrefixTuningConfig(num_virtual_tokens=size, **common),
        "ia3": lambda _: peft.IA3Config(target_modules=scaled, feedforward_modules=scaled[-1:], **common, **transposed),
    }


@pytest.mark.slow
@pytest.mark.parametrize("make", [tiny.llama, tiny.qwen3, tiny.gemma2, tiny.gpt2])
def test_counts_are_what_peft_trains(make: Callable[[], Any]) -> None:
    from peft import get_peft_model

    model = make()
    found = facts({**model.config.to_dict(), "architectures": [type(model).__name__]})
    ends = {group.name.rsplit(".", 1)[-1] for group in found.groups if group.linear and group.role != "head"}
    by_hand, seen = configs(sorted(ends)), set()
    for count in found.counts:
        for size, trained in count.trained.items() if count.method in by_hand else ():
            peft_model = get_peft_model(make(), by_hand[count.method](size))
            ranks = sum(
                p.numel() for name, p in peft_model.named_parameters() if ".ranknum." in name and p.requires_grad
            )
            assert trained == peft_model.get_nb_trainable_parameters()[0] - ranks, (count.method, size)
            seen.add(count.method)
    assert seen == by_hand.keys() - ({"loha", "lokr"} if make is tiny.gpt2 else set())


def test_a_method_that_cannot_go_into_a_model_is_listed_with_the_reason() -> None:
    counts = {count.method: count for count in facts(LLAMA_1B).counts}
    assert counts["bitfit"].trained == {}
    assert "no biases" in counts["bitfit"].why_not
    assert "Conv1D" in {count.method: count for count in facts(GPT2).counts}["loha"].why_not
    assert all(bool(count.trained) != bool(count.why_not) for count in counts.values())


def test_experts_are_named_with_the_methods_that_can_adapt_them() -> None:
    found = facts(MIXTRAL_8X7B)
    experts = [group for group in found.groups if group.role == "experts"]
    assert [group.shape for group in experts] == [(8, 28672, 4096), (8, 4096, 14336)]
    assert found.choices[0].targets == ("all-linear",)
    assert found.choices[0].weights < 0.03 * found.parameters
    assert all("target_parameters" in name.settings.model_fields for name in _methods(found.experts_by))


def _methods(names: tuple[str, ...]) -> list[Any]:
    from peftctl.methods import METHODS

    return [METHODS[name] for name in names]


def test_a_vision_tower_is_marked_and_left_alone() -> None:
    for settings, tower in ((GEMMA3_4B, "model.vision_tower"), (QWEN2_VL_2B, "model.visual")):
        found = facts(settings)
        assert tower in found.left_alone
        for group in found.groups:
            assert (group.part != "") == group.name.startswith((tower, "model.multi_modal")), group.name
        assert found.kinds["vision"] > 4e8


def test_facts_come_through_json_as_they_were() -> None:
    found = facts(GEMMA2_2B, with_tree=True, pattern="q_proj")
    assert read_architecture(json.loads(json.dumps(dataclasses.asdict(found)))) == found


def child_says(question: dict[str, Any], *arguments: str) -> tuple[int, dict[str, Any], float]:
    asked = {"settings": None, "gguf": None, "vocabulary": 0, "tree": True, "pattern": "*.q_proj", "by_peft": False}
    asked |= question
    command = [sys.executable, "-P", "-m", "peftctl.inspection.child", *arguments]
    started = time.monotonic()
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout or "{}"), time.monotonic() - started


@pytest.mark.slow
@pytest.mark.parametrize("settings", [each for each, _ in PARAMETERS.values()], ids=PARAMETERS)
def test_a_process_that_imports_less_says_the_same(settings: dict[str, Any]) -> None:
    code, said, _ = child_says({"settings": settings}, "lean")
    assert code == 0
    assert said["architecture"] == json.loads(
        json.dumps(dataclasses.asdict(facts(settings, with_tree=True, pattern="*.q_proj")))
    )


@pytest.mark.slow
def test_a_config_that_takes_for_ever_or_all_memory_is_stopped(tmp_path: Path) -> None:
    wide = {**LLAMA_1B, "hidden_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 8}
    code, _, _ = child_says({"settings": {**wide, "num_hidden_layers": 10**7}}, "lean")
    assert code < 0
    code, said, _ = child_says({"settings": {**LLAMA_1B, "num_labels": 10**9}}, "lean")
    assert code < 0 or "takes more than" in said["refused"][1]
    assert child.SECONDS <= 10


@pytest.mark.slow
def test_nothing_in_the_working_directory_is_imported(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('run')\n")
    (tmp_path / "torch.py").write_text("raise SystemExit('run')\n")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_1B))
    command = [str(Path(sys.executable).with_name("peftctl")), "inspect", "config.json", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["architecture"]["parameters"] == PARAMETERS["llama-3.2-1b"][1]
