"""Where LoRA's settings go in a model: words resolved to full names, and what is no place at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from peftctl.errors import UsageError, VerificationError
from peftctl.methods import lora_plan
from peftctl.methods.names import may_meet, numbers, picked, surely_within
from tests import tiny
from tests.unit.lora_cases import EXPERTS, LORA, MODELS, put, settled, untied

FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


def config(model: Any) -> Any:
    return model.peft_config["default"]


def refused(kind: str, **settings: Any) -> str:
    with pytest.raises(UsageError) as error:
        put(MODELS[kind](), **settings)
    return error.value.message


# Layers.


@pytest.mark.parametrize("kind", ["tied", "gpt2", "gemma2", "mixtral"])
@pytest.mark.parametrize("layers", [0, 1, [0, 1]])
def test_only_the_layers_that_are_named_get_an_adapter(kind: str, layers: Any) -> None:
    _, _, everything = put(MODELS[kind]())
    model, _, anatomy = put(MODELS[kind](), layers=layers)
    numbers = [layers] if isinstance(layers, int) else layers
    wanted = {name for name in everything.targets if any(f".{number}." in name for number in numbers)}
    assert set(anatomy.targets) == wanted
    assert len(wanted) == len(everything.targets) * len(numbers) // 2
    adapted = {name.split(".lora_A.")[0] for name, _ in model.get_base_model().named_parameters() if ".lora_A." in name}
    assert adapted == wanted
    assert config(model).layers_to_transform is None  # peft is handed names alone


def test_a_layer_that_is_not_there_is_refused_with_what_there_is() -> None:
    assert refused("tied", layers=[1, 2]) == "method.layers: there is no layer 2 (found 2); allowed: 0 to 1"


def test_an_entry_that_is_in_none_of_the_layers_is_refused() -> None:
    wanted = "method.targets: 'lm_head' matches nothing in the layers that method.layers names"
    assert refused("untied", layers=0, targets=["q_proj", "lm_head"]) == wanted
    assert refused("mixtral", layers=0, target_parameters="layers.1.mlp.experts.down_proj") == (
        "method.target_parameters: none is in the layers that method.layers names"
    )


def test_layers_hold_for_experts_too() -> None:
    _, _, anatomy = put(MODELS["mixtral"](), layers=1, target_parameters=EXPERTS)
    assert list(anatomy.beside) == ["model.layers.1.mlp.experts.gate_up_proj", "model.layers.1.mlp.experts.down_proj"]


# Ranks and alphas.


def test_peft_gets_full_names_that_match_one_module_each_and_never_a_recipe_s_pattern() -> None:
    model, _, _ = put(
        tiny.llama(), rank_pattern={"*.0.self_attn.[qk]_proj": 2}, alpha_pattern={"down_proj": 5.0, "*.1.mlp.up_*": 6.0}
    )
    assert config(model).rank_pattern == {
        r"^model\.layers\.0\.self_attn\.q_proj": 2,
        r"^model\.layers\.0\.self_attn\.k_proj": 2,
    }
    assert config(model).alpha_pattern == {
        r"^model\.layers\.0\.mlp\.down_proj": 5.0,
        r"^model\.layers\.1\.mlp\.down_proj": 5.0,
        r"^model\.layers\.1\.mlp\.up_proj": 6.0,
    }


@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_that_means_no_target_is_refused(setting: str) -> None:
    assert refused("tied", **{setting: {"q_porj": 2}}) == (
        f"method.{setting}: 'q_porj' matches no target; targets here: q_proj, k_proj, v_proj, o_proj, gate_proj, "
        "up_proj, down_proj; did you mean q_proj?"
    )
    # What would be a regular expression to peft is a name here, and a module that is no target is none.
    both = refused("tied", targets="q_proj", **{setting: {".*": 2, "*up_proj": 2}})
    assert [line.split(";")[0] for line in both.splitlines()] == [
        f"method.{setting}: '.*' matches no target",
        f"method.{setting}: '*up_proj' matches no target",
    ]
    assert refused("tied", targets="q_proj", **{setting: {"up_proj": 2}}) == (
        f"method.{setting}: 'up_proj' matches no target; allowed: q_proj"
    )


def test_two_entries_that_differ_about_a_target_are_refused_and_two_that_agree_are_not() -> None:
    assert refused("tied", rank_pattern={"q_proj": 2, "*.1.*": 3}) == (
        "method.rank_pattern: 'q_proj' and '*.1.*' both mean model.layers.1.self_attn.q_proj, and differ"
    )
    model, _, _ = put(tiny.llama(), rank_pattern={"q_proj": 2, "*.1.self_attn.q_proj": 2})
    assert len(config(model).rank_pattern) == 2


# Embeddings.


def test_all_linear_leaves_embeddings_alone() -> None:
    _, _, anatomy = put(untied())
    assert {name.rsplit(".", 1)[-1] for name in anatomy.targets} == {
        "q_proj", "k_proj", "v_proj", "o_proj", *FEED_FORWARD,
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), [("tied", "model.embed_tokens"), ("gpt2", "transformer.wte")])
def test_a_tied_embedding_is_no_target(kind: str, name: str) -> None:
    with pytest.raises(UsageError) as error:
        put(MODELS[kind](), targets=["all-linear", name.rsplit(".", 1)[-1]])
    assert error.value.message == (
        f"method.targets: {name} shares its weight with lm_head, so an adapter on it would be merged into both"
    )
    assert "trainable_tokens rows of it" in str(error.value.hint)


@pytest.mark.parametrize("settings", [{"init": "gaussian"}, {"init": "pissa"}, {"lora_bias": True}])
def test_an_embedding_has_peft_s_own_start_and_no_bias(settings: dict[str, Any]) -> None:
    (setting,) = settings
    assert refused("untied", targets=["embed_tokens", "q_proj"], **settings) == (
        f"method.{setting}: does not go with the target model.embed_tokens, which is an embedding; allowed: its default"
    )


def test_a_start_from_weights_needs_as_many_singular_values_as_the_rank() -> None:
    assert refused("tied", init="pissa", targets="k_proj", rank=17) == (
        "method.init: pissa has no more of model.layers.0.self_attn.k_proj than rank 16 (found 17)"
    )
    put(tiny.llama(), init="pissa", targets="k_proj", rank=16)


# Modules trained whole.


@pytest.mark.parametrize(
    ("kind", "settings", "wanted"),
    [
        (
            "tied",
            {"modules_to_save": "nrom"},
            "method.modules_to_save: 'nrom' matches no module; modules here: model, embed_tokens, layers, self_attn, "
            "q_proj, k_proj, v_proj, o_proj, mlp, gate_proj, up_proj, down_proj, input_layernorm, "
            "post_attention_layernorm, norm, lm_head; did you mean norm?",
        ),
        (
            "tied",
            {"modules_to_save": "lm_head"},
            "method.modules_to_save: lm_head shares its weight with model.embed_tokens, and cannot be trained apart "
            "from it",
        ),
        (
            "gpt2",
            {"modules_to_save": "wte"},
            "method.modules_to_save: transformer.wte shares its weight with lm_head, and cannot be trained apart from "
            "it",
        ),
        (
            "tied",
            {"modules_to_save": "model"},
            "method.modules_to_save: model.embed_tokens shares its weight with lm_head, and cannot be trained apart "
            "from it",
        ),
        (
            "tied",
            {"modules_to_save": "layers"},
            "method.modules_to_save: model.layers is a list of modules; name those in it",
        ),
        (
            "tied",
            {"modules_to_save": ["mlp", "up_proj"]},
            "method.modules_to_save: model.layers.0.mlp.up_proj is in model.layers.0.mlp, which is trained whole "
            "already",
        ),
        (
            "tied",
            {"modules_to_save": "mlp", "targets": ["q_proj", "up_proj"]},
            "method.modules_to_save: model.layers.0.mlp.up_proj is trained whole, so it can be no target",
        ),
        (
            "tied",
            {"modules_to_save": ["self_attn", "mlp"]},
            "method.targets: none is left beside method.layers and method.modules_to_save",
        ),
        (
            "mixtral",
            {"modules_to_save": "mlp.experts", "target_parameters": "down_proj"},
            "method.target_parameters: model.layers.0.mlp.experts.down_proj is in model.layers.0.mlp.experts, which "
            "is trained whole",
        ),
        (
            "untied",
            {"modules_to_save": "embed_tokens", "trainable_tokens": 3},
            "method.trainable_tokens: model.embed_tokens is trained whole, by method.modules_to_save",
        ),
        (
            "untied",
            {"targets": "embed_tokens", "trainable_tokens": 3},
            "method.trainable_tokens: model.embed_tokens is a target too; allowed: one of the two",
        ),
        ("tied", {"trainable_tokens": [3, 264]}, "method.trainable_tokens: there is no token 264; allowed: 0 to 263"),
        (
            "tied",
            {"target_parameters": "gate_up_proj"},
            "method.target_parameters: 'gate_up_proj' matches no experts' weight; experts' weights here: none",
        ),
        (
            "mixtral",
            {"target_parameters": "gate_up"},
            "method.target_parameters: 'gate_up' matches no experts' weight; experts' weights here: weight, "
            "gate_up_proj, down_proj; did you mean gate_up_proj?",
        ),
        (
            "mixtral",
            {"target_parameters": "q_proj.weight"},
            "method.target_parameters: 'q_proj.weight' matches no experts' weight; experts' weights here: weight, "
            "gate_up_proj, down_proj; did you mean weight?",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused_with_the_reason(kind: str, settings: dict[str, Any], wanted: str) -> None:
    assert refused(kind, **settings) == wanted


def test_who_names_a_tied_head_is_told_to_name_the_embedding() -> None:
    with pytest.raises(UsageError) as error:
        put(tiny.llama(), modules_to_save="lm_head")
    assert error.value.hint == "name model.embed_tokens, and both are trained as one"


def test_all_linear_leaves_out_what_is_trained_whole() -> None:
    _, _, anatomy = put(tiny.llama(), modules_to_save=["mlp", "k_proj"])
    assert {name.rsplit(".", 1)[-1] for name in anatomy.targets} == {"q_proj", "v_proj", "o_proj"}


def test_a_quantised_module_cannot_be_trained_whole() -> None:
    model = tiny.llama()
    packed = torch.zeros(64, 32, dtype=torch.uint8)
    model.model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(packed, requires_grad=False)
    with pytest.raises(UsageError) as error:
        LORA.beside(model, settled(modules_to_save="*.1.mlp"))
    assert error.value.message == "method.modules_to_save: model.layers.1.mlp is quantised, so it cannot be trained"


# Tokens.


def test_tokens_are_ids_or_the_tokenizer_s_words(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.save(tmp_path / "m"))
    tokenizer = tiny.tokenizer()
    made = settled(trainable_tokens=["<|im_start|>", 7, " ", "a", 7])
    wanted = [tokenizer.convert_tokens_to_ids("<|im_start|>"), 7, *tokenizer.encode(" "), *tokenizer.encode("a")]
    assert len(set(wanted)) == 4
    assert LORA.beside(model, made) == {"model.embed_tokens.weight": (4, 32)}
    wrapped, _, _ = put(model, trainable_tokens=["<|im_start|>", 7, " ", "a", 7])
    assert config(wrapped).trainable_token_indices == {"model.embed_tokens": wanted}
    with pytest.raises(UsageError) as error:
        LORA.beside(AutoModelForCausalLM.from_pretrained(tmp_path / "m"), settled(trainable_tokens=["odd"]))
    assert error.value.message == ("method.trainable_tokens: 'odd' is 3 tokens of this model; allowed: single ones")
    with pytest.raises(UsageError) as error:
        LORA.beside(tiny.llama(), settled(trainable_tokens=["odd"]))
    assert error.value.hint == "write its id"


# PEFT is watched.


def test_a_module_that_peft_takes_for_another_by_the_end_of_its_name_is_noticed() -> None:
    model = untied()
    model.model.my_lm_head = torch.nn.Linear(2, 2)
    with pytest.raises(VerificationError) as error:
        put(model, modules_to_save="lm_head", targets="q_proj")
    assert str(error.value) == "method: lora was not put where it was meant to go: model.my_lm_head"


Q0, Q1 = (f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1))


@pytest.mark.parametrize(
    ("other", "odd"),
    [
        ({}, ""),
        ({"target_modules": [Q0]}, Q1),
        ({"target_modules": ["q_proj", "o_proj"]}, "model.layers.0.self_attn.o_proj, model.layers.1.self_attn.o_proj"),
        ({"r": 3}, f"{Q0}, {Q1}"),
        ({"rank_pattern": {"0.self_attn.q_proj": 2}}, Q0),
        ({"alpha_pattern": {"1.self_attn.q_proj": 2}}, Q1),
        ({"modules_to_save": ["norm"]}, "model.layers.0.input_layernorm, model.layers.0.post_attention_layernorm, "
         "model.layers.1.input_layernorm, model.layers.1.post_attention_layernorm, model.norm"),
        ({"trainable_token_indices": [3]}, "model.embed_tokens"),
    ],
)  # fmt: skip
def test_what_is_elsewhere_or_of_another_size_than_planned_is_named(other: dict[str, Any], odd: str) -> None:
    from peft import LoraConfig, get_peft_model

    made = settled(targets="q_proj", alpha=8.0)
    planned = lora_plan.plan(untied(), made, [Q0, Q1])
    model = get_peft_model(untied(), LoraConfig(**{"r": 4, "lora_alpha": 8.0, "target_modules": [Q0, Q1], **other}))
    if not odd:
        planned.verify(model)
        return
    with pytest.raises(VerificationError) as error:
        planned.verify(model)
    assert str(error.value) == f"method: lora was not put where it was meant to go: {odd}"


def test_names_are_matched_by_their_last_parts_and_patterns_over_all_of_them() -> None:
    names = ["a.b.c", "x.bc", "c", "a.b"]
    assert picked("s", ["c"], names, "name") == ["a.b.c", "c"]
    assert picked("s", ["*c"], names, "name") == ["a.b.c", "x.bc", "c"]
    assert picked("s", ["a.?"], names, "name") == ["a.b"]
    with pytest.raises(UsageError, match=r"^s: 'd' matches no name; names here: c, bc, b.*\ns: 'z' matches no name; "):
        picked("s", ["d", "c", "z"], names, "name")


# Words alone.


def test_numbers_are_said_by_name_or_pattern_for_whatever_targets() -> None:
    names = ("a.0.q_proj", "a.1.q_proj", "a.1.up")
    assert numbers("method.x", {"q_proj": 2, "*.up": 3.5}, names) == {
        "a.0.q_proj": 2, "a.1.q_proj": 2, "a.1.up": 3.5
    }  # fmt: skip
    assert numbers("method.x", None, names) == {}


@pytest.mark.parametrize(
    ("entry", "other", "meets"),
    [
        ("q_proj", "q_proj", True),
        ("q_proj", "self_attn.q_proj", True),
        ("model.layers.0.self_attn.q_proj", "q_proj", True),
        ("q_proj", "k_proj", False),
        ("proj", "q_proj", False),
        ("*.1.*", "q_proj", True),
    ],
)
def test_whether_two_entries_can_mean_one_name(entry: str, other: str, meets: bool) -> None:
    assert may_meet(entry, other) is meets
    assert may_meet(other, entry) is meets


@pytest.mark.parametrize(
    ("entry", "module", "inside"),
    [
        ("q_proj", "q_proj", True),
        ("self_attn.q_proj", "q_proj", True),
        ("mlp.experts.gate_up_proj", "experts", True),
        ("experts.gate_up_proj", "experts", True),
        ("q_proj", "self_attn.q_proj", False),  # there may be another
        ("q_proj", "self_attn", False),
        ("*.q_proj", "*.q_proj", True),
        ("*.q_proj", "q_proj", False),
        ("all-linear", "lm_head", False),
    ],
)
def test_whether_an_entry_means_only_what_is_in_a_module(entry: str, module: str, inside: bool) -> None:
    assert surely_within(entry, module) is inside
