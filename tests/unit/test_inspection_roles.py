"""What layers do, by their names; what choices of targets cover, and how a recipe writes them."""

from __future__ import annotations

import time
from typing import Any

import pytest

from peftctl.errors import UsageError
from peftctl.inspection import coverage, facts, groups, match, roles, tree
from peftctl.methods import METHODS
from peftctl.model import targets
from peftctl.model.targets import linear_shapes, resolve
from tests import tiny

FUSED = roles.QUERY_KEY_VALUE
# Full names as transformers has them, over its families.
FAMILIES = {
    "model.layers.0.self_attn.q_proj": "query",
    "model.layers.11.self_attn.k_proj": "key",
    "model.layers.0.self_attn.v_proj": "value",
    "model.layers.0.self_attn.o_proj": "output",
    "model.layers.0.mlp.gate_proj": "gate",
    "model.layers.0.mlp.up_proj": "up",
    "model.layers.0.mlp.down_proj": "down",
    "model.layers.0.mlp.gate_up_proj": "gate, up",
    "model.layers.0.self_attn.qkv_proj": FUSED,
    "model.layers.0.self_attn.q_a_proj": "query",
    "model.layers.0.self_attn.q_b_proj": "query",
    "model.layers.0.self_attn.kv_a_proj_with_mqa": "key, value",
    "model.layers.0.self_attn.kv_b_proj": "key, value",
    "model.layers.0.mlp.gate": "router",
    "model.layers.0.mlp.shared_expert_gate": "router",
    "model.layers.0.mlp.shared_experts.gate_proj": "gate",
    "model.layers.0.self_attn.gate_proj": "other",
    "model.layers.0.self_attn.indexer.wq_b": "other",
    "transformer.h.0.attn.c_attn": FUSED,
    "transformer.h.0.attn.c_proj": "output",
    "transformer.h.0.mlp.c_fc": "up",
    "transformer.h.0.mlp.c_proj": "down",
    "transformer.h.0.self_attention.query_key_value": FUSED,
    "transformer.h.0.self_attention.dense": "output",
    "transformer.h.0.mlp.dense_h_to_4h": "up",
    "transformer.h.0.mlp.dense_4h_to_h": "down",
    "gpt_neox.layers.0.attention.dense": "output",
    "embed_out": "head",
    "model.decoder.layers.0.self_attn.out_proj": "output",
    "model.decoder.layers.0.encoder_attn.v_proj": "value",
    "model.decoder.layers.0.fc1": "up",
    "model.decoder.layers.0.fc2": "down",
    "bert.encoder.layer.0.attention.self.query": "query",
    "bert.encoder.layer.0.attention.output.dense": "output",
    "bert.encoder.layer.0.intermediate.dense": "up",
    "bert.encoder.layer.0.output.dense": "down",
    "cls.predictions.decoder": "head",
    "model.layers.0.attn.Wqkv": FUSED,
    "model.layers.0.attn.Wo": "output",
    "model.layers.0.mlp.Wi": "gate, up",
    "model.layers.0.mlp.Wo": "down",
    "encoder.block.0.layer.0.SelfAttention.q": "query",
    "decoder.block.0.layer.1.EncDecAttention.o": "output",
    "encoder.block.0.layer.1.DenseReluDense.wi_0": "gate",
    "encoder.block.0.layer.1.DenseReluDense.wi_1": "up",
    "encoder.block.0.layer.1.DenseReluDense.wi": "up",
    "encoder.block.0.layer.1.DenseReluDense.wo": "down",
    "transformer.layer.0.attention.q_lin": "query",
    "transformer.layer.0.ffn.lin1": "up",
    "visual.blocks.0.attn.qkv": FUSED,
    "visual.blocks.0.attn.proj": "output",
    "model.layers.0.self_attn.q_proj.linear": "query",
    "model.layers.0.mamba.in_proj": "other",
    "lm_head": "head",
    "score": "head",
}


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny.llama()


def on_meta(kind: str, **settings: Any) -> Any:
    from peftctl.inspection.blueprint import build

    return build({"model_type": kind, **settings}).model


@pytest.fixture(scope="module")
def mixtral() -> Any:
    return on_meta("mixtral", **tiny.SIZES, num_local_experts=3, architectures=["MixtralForCausalLM"])


@pytest.fixture(scope="module")
def gemma3() -> Any:
    text = {**tiny.SIZES, "model_type": "gemma3_text", "head_dim": 8}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    seeing = {"model_type": "siglip_vision_model", **vision, "image_size": 32, "patch_size": 8}
    return on_meta("gemma3", text_config=text, vision_config=seeing, mm_tokens_per_image=4)


@pytest.mark.parametrize(("name", "role"), FAMILIES.items())
def test_a_layer_s_role_is_told_from_its_name(name: str, role: str) -> None:
    assert groups.of_linear(roles.collapsed(name)) == role


def test_layer_numbers_become_stars_and_nothing_else_does() -> None:
    assert roles.collapsed("model.layers.10.mlp.experts.3.w1") == "model.layers.*.mlp.experts.*.w1"
    assert roles.collapsed("visual.merger.mlp.0") == "visual.merger.mlp.*"
    assert roles.collapsed("0.fc1.linear2d.x3") == "*.fc1.linear2d.x3"


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.vision_tower.encoder.layers.*.mlp.fc1", "vision"),
        ("model.visual.blocks.*.attn.qkv", "vision"),
        ("model.visual.merger.mlp.*", "projector"),
        ("model.multi_modal_projector.linear_1", "projector"),
        ("model.audio_tower.layers.*.fc1", "audio"),
        ("model.language_model.layers.*.mlp.up_proj", ""),
        ("model.layers.*.self_attn.q_proj", ""),
    ],
)
def test_towers_beside_the_language_model_are_told_from_the_path(name: str, part: str) -> None:
    assert roles.part(name) == part


def test_layers_are_grouped_with_shape_type_and_count(llama: Any) -> None:
    found = {group.role: group for group in groups.groups(llama)}
    assert list(found) == ["query", "key", "value", "output", "gate", "up", "down", "embedding", "head"]
    key = found["key"]
    assert (key.name, key.shape, key.layers, key.type) == ("model.layers.*.self_attn.k_proj", (32, 16), 2, "Linear")
    assert key.parameters == 2 * 32 * 16
    assert found["head"].tied
    assert not found["embedding"].tied


def test_layers_of_one_name_and_two_shapes_are_two_groups() -> None:
    model = on_meta(
        "qwen2_vl", vision_config={"depth": 1, "embed_dim": 32, "num_heads": 4, "hidden_size": 32}, **tiny.SIZES
    )
    merger = [group for group in groups.groups(model) if group.name == "model.visual.merger.mlp.*"]
    assert [(group.shape, group.layers, group.part) for group in merger] == [
        ((128, 128), 1, "projector"),
        ((128, 32), 1, "projector"),
    ]


def test_a_transposed_layer_s_shape_is_inputs_and_outputs() -> None:
    found = {group.name: group for group in groups.groups(tiny.gpt2())}
    fused = found["transformer.h.*.attn.c_attn"]
    assert (fused.role, fused.shape, fused.type) == (FUSED, (32, 96), "Conv1D")
    assert fused.parameters == 2 * (32 * 96 + 96)


def test_experts_of_one_tensor_are_a_role_and_no_linear_layer(mixtral: Any) -> None:
    found = [group for group in groups.groups(mixtral) if group.role == "experts"]
    assert [(group.name.rsplit(".", 1)[-1], group.shape, group.layers, group.linear) for group in found] == [
        ("gate_up_proj", (3, 128, 32), 2, False),
        ("down_proj", (3, 32, 64), 2, False),
    ]
    assert not any("experts" in name for name in linear_shapes(mixtral))
    kinds = groups.by_kind(mixtral)
    assert kinds["experts"] == 2 * 3 * (128 * 32 + 32 * 64)
    assert kinds["router"] == 2 * 3 * 32


def test_kinds_add_up_to_all_parameters_with_shared_ones_once(llama: Any, mixtral: Any, gemma3: Any) -> None:
    for model in (llama, mixtral, gemma3, tiny.gpt2(), tiny.llama(tie_word_embeddings=False)):
        assert sum(groups.by_kind(model).values()) == model.num_parameters()
    assert groups.by_kind(llama)["embeddings"] == 264 * 32
    assert "head" not in groups.by_kind(llama)
    assert groups.by_kind(tiny.llama(tie_word_embeddings=False))["head"] == 264 * 32


def test_tied_names_are_those_of_one_parameter(llama: Any) -> None:
    assert groups.tied(llama) == (("model.embed_tokens.weight", "lm_head.weight"),)
    assert groups.tied(tiny.llama(tie_word_embeddings=False)) == ()


def choices(model: Any) -> dict[str, facts.Choice]:
    resolver = coverage.Resolver(model)
    defaults = {name: resolver.default(method) for name, method in METHODS.items()}
    return {choice.name: choice for choice in coverage.choices(resolver, defaults)}


def test_common_choices_cover_what_they_say(llama: Any) -> None:
    found = choices(llama)
    expected = {
        "all-linear": (("all-linear",), 14),
        "attention": (("q_proj", "k_proj", "v_proj", "o_proj"), 8),
        "query and value": (("q_proj", "v_proj"), 4),
        "feed-forward": (("gate_proj", "up_proj", "down_proj"), 6),
    }
    for name, (entries, modules) in expected.items():
        assert (found[name].targets, found[name].modules) == (entries, modules)
    assert found["attention"].weights == 2 * (2 * 32 * 32 + 2 * 32 * 16)
    assert found["attention"].left_out == ("gate", "up", "down")
    assert found["all-linear"].left_out == ()


def test_a_query_that_is_one_layer_with_keys_is_said_to_be() -> None:
    assert choices(tiny.gpt2())["query and value (fused)"].targets == ("c_attn",)


def test_what_a_recipe_is_to_write_gives_what_the_choice_covers(llama: Any, mixtral: Any, gemma3: Any) -> None:
    bert = on_meta("bert", hidden_size=32, num_hidden_layers=12, num_attention_heads=4, intermediate_size=64,
                   architectures=["BertForMaskedLM"])  # fmt: skip
    t5 = on_meta("t5", d_model=32, d_ff=64, d_kv=8, num_heads=4, num_layers=2)
    for model in (llama, mixtral, gemma3, bert, t5, tiny.gpt2(), tiny.gemma2()):
        for choice in choices(model).values():
            own = METHODS[choice.default_of[0]].targetable(model) if choice.default_of else None
            found = resolve(model, choice.targets, own)
            assert len(found) == choice.modules, choice
            assert len(choice.targets) <= 8, choice


def test_every_method_s_choice_is_what_training_would_resolve(llama: Any, gemma3: Any) -> None:
    """The resolver's short cut gives what ``targets.of`` gives, though that holds every name against every module."""
    many = tiny.llama(num_hidden_layers=30)
    for model in (llama, many, gemma3, tiny.gpt2()):
        resolver = coverage.Resolver(model)
        for method in METHODS.values():
            found = resolver.default(method)
            if found.settings is None:
                continue
            assert found.matched == targets.of(model, method, found.settings), method.name


@pytest.mark.parametrize(
    ("names", "entries"),
    [
        (["a.0.x.proj", "a.1.x.proj"], ("x.proj",)),
        (["a.0.x.proj", "a.1.x.proj", "b.0.y.proj"], ("proj",)),
        (["b.0.y.proj"], ("y.proj",)),
        (["a.0.out", "a.1.out"], ("*[0-9].out",)),
        (["a.0.x.out", "a.1.x.out"], ("x.out",)),
        (["a.1.x.proj"], ("a.1.x.proj",)),
    ],
)
def test_entries_are_the_shortest_that_mean_nothing_else(names: list[str], entries: tuple[str, ...]) -> None:
    universe = ["a.0.x.proj", "a.1.x.proj", "a.0.out", "a.1.out", "a.0.x.out", "a.1.x.out", "b.0.y.proj"]
    assert coverage.paste(names, universe) == entries


def test_patterns_are_quoted_where_yaml_would_read_a_sign() -> None:
    import yaml

    for entries in (("all-linear",), ("q_proj", "v_proj"), ("*[0-9].out",), ("a", "b.*.c"), ('["q]_?',)):
        read = yaml.safe_load(f"targets: {facts.written(entries)}")["targets"]
        assert tuple([read] if isinstance(read, str) else read) == entries


def test_a_pattern_shows_what_it_matches_and_what_is_called_the_same(gemma3: Any) -> None:
    found = match.match(gemma3, "model.language_model.layers.0.*.q_proj")
    assert [(each.name, each.layers, each.of, each.role) for each in found.linear] == [
        ("model.language_model.layers.*.self_attn.q_proj", 1, 2, "query")
    ]
    assert (found.others, found.refused) == ((), "")


def test_a_pattern_that_matches_no_linear_layer_says_what_it_matches_and_is_refused(llama: Any) -> None:
    found = match.match(llama, "input_layernorm")
    assert found.linear == ()
    assert [(each.name, each.layers, each.type) for each in found.others] == [
        ("model.layers.*.input_layernorm", 2, "LlamaRMSNorm")
    ]
    assert "which is no linear layer" in found.refused


def test_a_pattern_of_norms_is_said_to_be_taken_by_what_goes_into_norms(llama: Any) -> None:
    found = match.match(llama, "norm")
    assert "ln_tuning" in found.taken_by
    for method in METHODS.values():
        own = method.targetable(llama)
        takes = own is not None and any(name.endswith("norm") and name.rpartition(".")[2] == "norm" for name in own)
        assert (method.name in found.taken_by) is takes
    assert match.match(llama, "q_proj").taken_by == ()


def test_a_pattern_of_experts_is_said_to_be_no_target_but_a_parameter(mixtral: Any, llama: Any) -> None:
    found = match.match(mixtral, "experts.gate_up_proj")
    assert (found.linear, found.experts) == ((), ("model.layers.*.mlp.experts.gate_up_proj",))
    assert match.match(llama, "gate_proj").experts == ()


@pytest.mark.parametrize("pattern", ["qproj", "q_prj", "Q_PROJ", "*.q_pro"])
def test_a_near_miss_is_named(llama: Any, pattern: str) -> None:
    found = match.match(llama, pattern)
    assert found.near[0] == "model.layers.*.self_attn.q_proj"
    assert "matches no module" in found.refused


def test_a_tower_that_text_never_goes_through_is_matched_as_no_target(gemma3: Any) -> None:
    found = match.match(gemma3, "fc1")
    assert found.linear == ()
    assert found.others[0].name == "model.vision_tower.encoder.layers.*.mlp.fc1"
    assert "rows of text never go through" in found.refused


def test_a_pattern_that_backtracks_for_ever_elsewhere_takes_no_time_here(llama: Any) -> None:
    hostile = "*a" * 100 + "*[" + "!" * 50 + "b"
    started = time.monotonic()
    assert match.match(llama, hostile).linear == ()
    assert match.match(llama, "*" * 250 + "x").linear == ()
    assert time.monotonic() - started < 2


@pytest.mark.parametrize("pattern", ["", "a" * 301])
def test_a_pattern_longer_than_any_name_or_empty_is_refused(llama: Any, pattern: str) -> None:
    with pytest.raises(UsageError, match="allowed: 1 to 300"):
        match.match(llama, pattern)


def test_a_tree_says_once_what_is_alike(llama: Any) -> None:
    found = tree.tree(llama)
    lines = {(each.depth, each.name): each for each in found}
    assert lines[0, ""].parameters == llama.num_parameters()
    assert lines[3, "0-1"].type == "LlamaDecoderLayer"
    assert lines[5, "k_proj"].shapes == ("weight 16 × 32",)
    assert lines[5, "k_proj"].parameters == 2 * 16 * 32
    assert len(found) < len(list(llama.modules()))


def test_a_tree_keeps_blocks_apart_that_differ() -> None:
    model = on_meta("deepseek_v3", **tiny.SIZES, first_k_dense_replace=1, n_routed_experts=4, n_group=1, topk_group=1,
                    num_experts_per_tok=2, moe_intermediate_size=16, q_lora_rank=8, kv_lora_rank=8)  # fmt: skip
    blocks = [each.name for each in tree.tree(model) if each.type.endswith("DecoderLayer")]
    assert blocks == ["0", "1"]
