"""Targets by name and pattern on real module trees."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest

from peftctl.errors import UsageError
from peftctl.methods import METHODS
from peftctl.model import targets
from tests import tiny

ATTENTION = {"q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "o_proj": (32, 32)}
FEED_FORWARD = {"gate_proj": (32, 64), "up_proj": (32, 64), "down_proj": (64, 32)}


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny.llama()


@pytest.fixture(scope="module")
def untied() -> Any:
    return tiny.llama(tie_word_embeddings=False)


def names(*last: str) -> set[str]:
    return {
        f"model.layers.{layer}.{'self_attn' if name in ATTENTION else 'mlp'}.{name}"
        for layer in (0, 1)
        for name in last
    }


def refused(model: Any, *wanted: str) -> str:
    with pytest.raises(UsageError) as error:
        targets.resolve(model, wanted)
    return str(error.value)


def test_all_linear_is_every_linear_layer_but_the_head(llama: Any, untied: Any) -> None:
    for model in (llama, untied):
        found = targets.resolve(model, ["all-linear"])
        assert set(found) == names(*ATTENTION, *FEED_FORWARD)
        for name, shape in found.items():
            assert shape == (ATTENTION | FEED_FORWARD)[name.rsplit(".", 1)[1]]


def test_transposed_layers_are_linear_and_their_shapes_are_inputs_and_outputs() -> None:
    found = targets.resolve(tiny.gpt2(), ["all-linear"])
    assert {name.removeprefix("transformer.h.0."): shape for name, shape in found.items() if ".0." in name} == {
        "attn.c_attn": (32, 96),
        "attn.c_proj": (32, 32),
        "mlp.c_fc": (32, 128),
        "mlp.c_proj": (128, 32),
    }


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        (("q_proj",), names("q_proj")),
        (("q_proj", "v_proj"), names("q_proj", "v_proj")),
        (("v_proj", "q_proj", "q_proj"), names("q_proj", "v_proj")),
        (("self_attn.q_proj",), names("q_proj")),
        (("model.layers.1.mlp.up_proj",), {"model.layers.1.mlp.up_proj"}),
        (("*.0.self_attn.?_proj",), {name for name in names(*ATTENTION) if ".0." in name}),
        (("*.[qk]_proj",), names("q_proj", "k_proj")),
        (("all-linear", "q_proj"), names(*ATTENTION, *FEED_FORWARD)),
    ],
)
def test_names_and_patterns_match_whole_parts_of_full_names(
    llama: Any, wanted: tuple[str, ...], found: set[str]
) -> None:
    assert set(targets.resolve(llama, wanted)) == found


def test_targets_come_in_the_model_s_order(llama: Any) -> None:
    order = [name for name, _ in llama.named_modules()]
    found = list(targets.resolve(llama, ("v_proj", "down_proj", "q_proj")))
    assert found == sorted(found, key=order.index)


def test_an_untied_head_may_be_asked_for(untied: Any) -> None:
    assert targets.resolve(untied, ["lm_head"]) == {"lm_head": (32, 264)}


@pytest.mark.parametrize("wanted", ["lm_head", "*", "lm_*", "*head", "l?_head", "lm_hea[d]", "*_*"])
def test_a_head_that_is_the_input_embedding_is_refused(llama: Any, wanted: str) -> None:
    assert refused(llama, wanted) == (
        "method.targets: lm_head shares its weight with the input embedding, so an adapter on it "
        "would be merged into both"
    )


def nested() -> Any:
    """A model that sees, around a whole one of text, whose head is its embedding."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

    sees = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = OPTConfig(
        vocab_size=264, hidden_size=32, ffn_dim=64, num_hidden_layers=1, num_attention_heads=4, word_embed_proj_dim=32
    )
    config = Blip2Config(
        vision_config={**sees, "image_size": 28, "patch_size": 14},
        qformer_config={**sees, "encoder_hidden_size": 32, "vocab_size": 264},
        text_config=text,
    )
    return Blip2ForConditionalGeneration(config)


@pytest.mark.parametrize("wanted", ["lm_head", "language_model.lm_head", "*.lm_head", "language_model.*", "*"])
def test_so_is_one_that_lies_deeper(wanted: str) -> None:
    model = nested()
    assert model.language_model.lm_head.weight is model.get_input_embeddings().weight
    assert refused(model, wanted).startswith(
        "method.targets: language_model.lm_head shares its weight with the input embedding"
    )
    assert "language_model.lm_head" not in targets.resolve(model, ["all-linear"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("wanted", ["lm_head", "lm_*", "*"])
def test_so_is_one_of_an_encoder_and_decoder_that_share_their_embedding(wanted: str, tied: bool) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    model = T5ForConditionalGeneration(T5Config(vocab_size=264, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4))
    if not tied:
        model.lm_head.weight = copy.deepcopy(model.lm_head.weight)
    if tied:
        assert refused(model, wanted).startswith("method.targets: lm_head shares its weight with the input embedding")
    else:
        assert "lm_head" in targets.resolve(model, [wanted])


@pytest.mark.parametrize("wanted", ["embed_tokens", "model.embed_tokens", "*embed*", "*.embed_token?"])
def test_an_embedding_that_is_the_head_is_refused_and_one_by_itself_is_not(
    wanted: str, llama: Any, untied: Any
) -> None:
    lora = METHODS["lora"]
    settings = lora.resolve(lora.settings(name="lora", targets=(wanted,)))
    with pytest.raises(UsageError) as error:
        targets.of(llama, lora, settings)
    assert error.value.message.startswith("method.targets: model.embed_tokens shares its weight with lm_head")
    assert targets.of(untied, lora, settings) == {"model.embed_tokens": (264, 32)}


def test_layers_that_share_a_weight_with_each_other_are_refused() -> None:
    model = tiny.llama(tie_word_embeddings=False)
    first, second = (model.model.layers[layer].mlp for layer in (0, 1))
    second.up_proj.weight = first.up_proj.weight
    for wanted in ("model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"):
        other = wanted.replace(".0.", ".x.").replace(".1.", ".0.").replace(".x.", ".1.")
        assert refused(model, wanted).startswith(f"method.targets: {wanted} shares its weight with {other}, ")
    assert len(targets.resolve(model, ["down_proj"])) == 2


@pytest.mark.parametrize("part", ["a*", "?*", "[a-z]*"])
def test_a_pattern_of_many_stars_takes_no_longer_than_one_of_few(part: str, llama: Any) -> None:
    """A regular expression of as many `.*` would try every way of sharing out the letters."""
    wanted = "*" + part * ((targets.LONGEST - 2) // len(part)) + "#"
    names = {f"model.layers.{layer}.{'a' * 100}.q_proj": (1, 1) for layer in range(1000)}
    before = time.process_time()
    with pytest.raises(UsageError, match="matches no module"):
        targets.resolve(llama, [wanted], names)
    assert time.process_time() - before < 2


def test_an_entry_longer_than_any_name_is_refused_unread(llama: Any) -> None:
    assert refused(llama, "[" * 5000) == (
        "method.targets: an entry of 5,000 characters, longer than any module's name; allowed: at most 300"
    )
    assert len(refused(llama, "*" * 300).split("\n")) == 1


@pytest.mark.parametrize("wanted", ["qproj", "proj", "_proj", "q_pro", "Q_PROJ", "layers.0", "q_proj.*"])
def test_part_of_a_name_matches_nothing(llama: Any, wanted: str) -> None:
    assert refused(llama, wanted).startswith(f"method.targets: {wanted!r} matches ")


def test_an_entry_that_matches_nothing_names_the_nearest(llama: Any) -> None:
    assert refused(llama, "q_prj") == (
        "method.targets: 'q_prj' matches no module; linear layers here: q_proj, k_proj, v_proj, o_proj, gate_proj, "
        "up_proj, down_proj, lm_head; did you mean q_proj?"
    )


def test_every_entry_that_matches_nothing_is_reported_though_others_match(llama: Any) -> None:
    lines = refused(llama, "q_proj", "c_attn", "norm").split("\n")
    assert len(lines) == 2
    assert lines[0].startswith("method.targets: 'c_attn' matches no module; ")
    assert lines[1] == "method.targets: 'norm' matches model.norm, a LlamaRMSNorm, which is no linear layer"


def test_a_summary_counts_layers(llama: Any) -> None:
    found = targets.summary(targets.resolve(llama, ("q_proj", "model.layers.0.mlp.up_proj")))
    assert found == {"model.layers.*.self_attn.q_proj": 2, "model.layers.*.mlp.up_proj": 1}
