"""Methods put into architectures without weights: the same is said as of the real thing, and before it is read."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from peftctl.errors import UsageError
from peftctl.methods import METHODS, Method
from peftctl.methods.lora import Lora
from peftctl.model import attach, load, preflight, skeleton, targets
from peftctl.tasks import TASKS
from tests import jobs, tiny

TASK = TASKS["causal_lm"]
LAYERS = 5
DEEP = {**tiny.SIZES, "num_hidden_layers": LAYERS}


def llama(**changes: Any) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**(DEEP | changes))


def gpt2(**changes: Any) -> Any:
    from transformers import GPT2Config

    return GPT2Config(**({"vocab_size": 264, "n_embd": 32, "n_layer": LAYERS, "n_head": 4} | changes))


def gemma2() -> Any:
    from transformers import Gemma2Config

    return Gemma2Config(**DEEP, head_dim=8)


def qwen3_next() -> Any:
    """Every fourth layer has queries and keys, and the others have none."""
    from transformers import Qwen3NextConfig

    return Qwen3NextConfig(
        **(DEEP | {"num_hidden_layers": 8}), head_dim=8, linear_num_key_heads=2, linear_num_value_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=16, shared_expert_intermediate_size=16,
    )  # fmt: skip


def mamba() -> Any:
    from transformers import MambaConfig

    return MambaConfig(vocab_size=264, hidden_size=32, num_hidden_layers=LAYERS)


def olmo() -> Any:
    """A family that no table has seen."""
    from transformers import OlmoConfig

    return OlmoConfig(**DEEP)


def deepseek() -> Any:
    """Three layers without experts before those that have some."""
    from transformers import DeepseekV3Config

    return DeepseekV3Config(
        **(DEEP | {"bos_token_id": 257, "num_hidden_layers": 8, "num_key_value_heads": 4}),
        first_k_dense_replace=3, moe_intermediate_size=16, n_routed_experts=4, n_group=2, topk_group=1,
        num_experts_per_tok=2, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    )  # fmt: skip


def method(name: str, **settings: Any) -> tuple[Method, Any]:
    found = METHODS[name]
    return found, found.resolve(found.settings(name=name, **settings))


def judged(config: Any, name: str, **settings: Any) -> preflight.Verdict:
    return preflight.judge(skeleton.build(config, TASK), *method(name, **settings), TASK)


def checked(config: Any, name: str, **settings: Any) -> list[str]:
    notes: list[str] = []
    preflight.check("org/model", config, TASK, *method(name, **settings), notes.append)
    return notes


def refused(config: Any, name: str, **settings: Any) -> str:
    with pytest.raises(UsageError) as error:
        checked(config, name, **settings)
    return error.value.message


def test_a_skeleton_has_the_real_modules_and_shapes_and_no_weights() -> None:
    empty = skeleton.build(llama(), TASK)
    real = TASK.model_class().from_config(llama())
    assert {n: p.shape for n, p in empty.whole.named_parameters()} == {n: p.shape for n, p in real.named_parameters()}
    for model in (empty.whole, empty.small):
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert len(empty.small.model.layers) == 2
    names = {name: tensor.shape for name, tensor in empty.whole.named_parameters()}
    assert all(names[name] == tensor.shape for name, tensor in empty.small.named_parameters())


@pytest.mark.parametrize(
    ("config", "depth"), [(llama(), 2), (gpt2(), 2), (gemma2(), 2), (mamba(), 2), (qwen3_next(), 4), (deepseek(), 4)]
)
def test_it_is_cut_to_two_layers_or_to_as_many_as_show_every_kind(config: Any, depth: int) -> None:
    before = copy.deepcopy(config.to_dict())
    small = skeleton.cut(config)
    assert config.to_dict() == before
    assert small.num_hidden_layers == depth
    for name, value in small.to_dict().items():
        if isinstance(value, list) and isinstance(before[name], list) and len(before[name]) == config.num_hidden_layers:
            assert value == before[name][:depth], name
    whole, part = skeleton.build(config, TASK).whole, skeleton.build(config, TASK).small
    assert {preflight._kind(n) for n, _ in part.named_modules()} == {
        preflight._kind(n) for n, _ in whole.named_modules()
    }


def test_a_model_that_sees_is_cut_in_text_and_images(tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, LlavaConfig

    vision = CLIPVisionConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4)
    small = skeleton.cut(LlavaConfig(text_config=llama(), vision_config=vision))
    assert (small.text_config.num_hidden_layers, small.vision_config.num_hidden_layers) == (2, 2)
    assert small.text_config.hidden_size == 32


@pytest.mark.parametrize("config", [llama(), gpt2()])
def test_the_verdict_counts_what_the_closed_formula_gives_in_full_depth(config: Any) -> None:
    empty, lora = skeleton.build(config, TASK), method("lora")
    verdict = preflight._counted(empty, *lora, *preflight._judged(empty, *lora, TASK))
    width, inner, keys = 32, 64, 16
    shapes = (
        [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)]
        if config.model_type == "gpt2"
        else [*[(width, width)] * 2, *[(width, keys)] * 2, *[(width, inner)] * 2, (inner, width)]
    )
    assert verdict.said == "attaches"
    assert verdict.modules == LAYERS * len(shapes)
    assert verdict.parameters == LAYERS * sum(16 * (inputs + outputs) for inputs, outputs in shapes)


@pytest.mark.slow
@pytest.mark.parametrize("config", [llama(), gpt2(), gemma2(), mamba(), qwen3_next()], ids=lambda c: c.model_type)
def test_it_says_of_every_method_what_becomes_of_the_real_model(config: Any) -> None:
    """The oracle is PEFT on a model with weights, in full depth, by the way that training goes."""
    said = preflight.verdicts(config, TASK)
    assert said.keys() == METHODS.keys()
    sure = 0
    for name, found in METHODS.items():
        if (settings := preflight._defaults(found)) is None:
            assert said[name].reason == f"it needs settings: {', '.join(found.settings.needed)}"
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            real = TASK.model_class().from_config(config).requires_grad_(False).eval()
            try:
                anatomy = attach.anatomy(real, targets.of(real, found, settings), found.beside(real, settings))
                model = attach.attach(real, found, settings, anatomy, TASK.peft_type, preflight.FACTS)
            except Exception:
                assert said[name].said in ("cannot attach", "not verified"), name
                continue
        if said[name].said == "not verified":
            continue
        sure += 1
        assert said[name].said == "attaches", (name, said[name])
        assert said[name].modules == len(anatomy.targets), name
        assert said[name].parameters == attach.trainable(model), name
    assert sure >= 7


def test_targets_in_any_layer_are_judged_and_counted() -> None:
    deep = ("model.layers.4.mlp.up_proj", "model.layers.[234].self_attn.q_proj")
    verdict = judged(llama(), "lora", targets=deep)
    assert (verdict.said, verdict.modules) == ("attaches", 4)
    assert "matches no module" in refused(olmo(), "lora", targets=("model.layers.5.mlp.up_proj",))
    # a kind of layer that comes fourth
    assert judged(qwen3_next(), "lora", targets=("q_proj",)).modules == 2


def test_settings_by_layer_are_judged_in_full_depth() -> None:
    """The first layers have none of what they name."""
    verdict = judged(llama(), "lora", targets=("up_proj",), rank_pattern={"model.layers.4.mlp.up_proj": 2})
    assert (verdict.said, verdict.modules) == ("attaches", LAYERS)


def test_what_peft_refuses_is_refused_in_a_line_with_what_works() -> None:
    said = refused(gpt2(), "loha")
    assert said.startswith("method.name: loha cannot go into GPT2LMHeadModel: Target module of type <class")
    assert "; allowed: method lora or method ia3 or method adalora" in said
    assert "\n" not in said


@pytest.mark.parametrize("name", ["prefix_tuning", "cartridge"])
@pytest.mark.parametrize("make", [qwen3_next, mamba])
def test_no_prefix_goes_where_a_layer_keeps_no_keys_and_values(name: str, make: Any) -> None:
    said = refused(make(), name)
    assert said.startswith(f"method.name: {name} cannot go into ")
    assert "its layer 0 keeps something else than keys and values, which a prefix is made of; allowed: method " in said


def test_a_prefix_goes_before_windows_of_attention_too() -> None:
    assert judged(gemma2(), "prefix_tuning").said == "attaches"
    assert judged(qwen3_next(), "prompt_tuning").said == "attaches"  # which asks nothing of a cache


def test_a_methods_own_defaults_are_offered_first() -> None:
    class Picky(Lora):
        def build(self, model: Any, settings: Any, *args: Any) -> Any:
            if settings.rank != 16:
                raise ValueError("rank 16 and no other\nand more of it")
            return super().build(model, settings, *args)

    picky = Picky()
    settings = picky.resolve(picky.settings(name="lora", rank=3))
    with pytest.raises(UsageError) as error:
        preflight.check("m", olmo(), TASK, picky, settings, pytest.fail)
    assert error.value.message.startswith(
        "method.name: lora cannot go into OlmoForCausalLM: rank 16 and no other and more of it; "
        "allowed: lora with its own defaults or method "
    )


@dataclass(frozen=True)
class Wordy(Lora):
    """LoRA that PEFT has much to say against."""

    def build(self, *args: Any) -> Any:
        raise ValueError("many words " * 40)


def test_what_peft_says_is_cut_between_words() -> None:
    wordy = Wordy()
    verdict = preflight.judge(skeleton.build(olmo(), TASK), wordy, wordy.resolve(wordy.settings(name="lora")), TASK)
    assert verdict.reason == "many words " * 17 + "many ..."
    assert len(verdict.reason) <= 200


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        (llama, "seen to work on llama: lora, ia3, adalora, loha, lokr"),
        (gpt2, "seen to work on gpt2: lora, "),
        (olmo, ""),
    ],
)
def test_on_a_loaded_model_too_it_is_said_what_works_there(config: Any, hint: str) -> None:
    wordy, model = Wordy(), TASK.model_class().from_config(config())
    settings = wordy.resolve(wordy.settings(name="lora"))
    anatomy = attach.anatomy(model, targets.of(model, wordy, settings))
    with pytest.raises(UsageError, match="method: lora cannot go into") as refused:
        attach.attach(model, wordy, settings, anatomy, "CAUSAL_LM", preflight.FACTS)
    found = refused.value.hint
    assert found.startswith(hint) if hint else not found
    assert "loha" not in found or config is llama
    assert found.count(",") <= 4


@dataclass(frozen=True)
class Idle(Lora):
    """LoRA that trains nothing."""

    def build(self, *args: Any) -> Any:
        return super().build(*args).requires_grad_(False)


def test_a_method_that_would_train_nothing_is_refused() -> None:
    idle = Idle()
    settings = idle.resolve(idle.settings(name="lora"))
    with pytest.raises(UsageError) as error:
        preflight.check("m", olmo(), TASK, idle, settings, pytest.fail)
    assert error.value.message.startswith("method.name: lora trains nothing in OlmoForCausalLM; allowed: ")


@dataclass(frozen=True)
class Miscounted(Lora):
    """LoRA whose formula is one short."""

    def parameters(self, settings: Any, anatomy: Any) -> int:
        return super().parameters(settings, anatomy) - 1


def test_a_method_that_trains_something_else_than_its_formula_says_is_refused() -> None:
    found = Miscounted()
    settings = found.resolve(found.settings(name="lora"))
    verdict = preflight.judge(skeleton.build(llama(), TASK), found, settings, TASK)
    assert verdict.said == "cannot attach"
    assert verdict.reason == "it would train 16384 parameters, where its formula gives 16383"


@dataclass(frozen=True)
class Peeking(Lora):
    """A method that starts from the weights' values."""

    def build(self, model: Any, *args: Any) -> Any:
        assert float(model.get_input_embeddings().weight.sum()) != 0
        return super().build(model, *args)


def test_what_starts_from_weights_is_not_verified_and_said() -> None:
    found, notes = Peeking(), []
    settings = found.resolve(found.settings(name="lora"))
    preflight.check("m", olmo(), TASK, found, settings, notes.append)
    assert notes == [
        "lora on olmo: not verified before the weights are loaded: "
        "PEFT computes with values on its way in, and there are none yet"
    ]


def test_a_models_own_code_is_not_run() -> None:
    from transformers import PreTrainedConfig

    class Own(PreTrainedConfig):
        model_type = "own"

    config = Own()
    config.auto_map = {"AutoModelForCausalLM": "own--modeling.Own"}
    assert checked(config, "lora") == [
        "lora on own: not verified before the weights are loaded: "
        "the model brings its own code, which is run when it is loaded"
    ]


def test_what_is_wrong_with_a_recipes_words_is_said_in_the_words_of_targets() -> None:
    model = TASK.model_class().from_config(olmo())
    found, settings = method("lora", targets=("q_prj",))
    with pytest.raises(UsageError) as later:
        targets.of(model, found, settings)
    assert refused(olmo(), "lora", targets=("q_prj",)) == later.value.message


def test_what_was_seen_to_work_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        preflight, "table", lambda _: {"methods": {"lora": {"families": {"llama": "yes", "gpt2": "no"}}}}
    )
    tried: list[str] = []
    build = skeleton.build
    monkeypatch.setattr(skeleton, "build", lambda *args: tried.append(args[0].model_type) or build(*args))
    for config, name in ((llama(), "lora"), (gpt2(), "lora"), (gemma2(), "lora"), (llama(), "ia3")):
        checked(config, name)
    assert tried == ["gpt2", "gemma2", "llama"]


def test_what_was_seen_to_work_is_tried_again_where_that_is_asked_for() -> None:
    found, settings = method("lora", layers=(LAYERS,))
    preflight.check("m", llama(), TASK, found, settings, pytest.fail)
    with pytest.raises(UsageError, match=f"there is no layer {LAYERS}"):
        preflight.check("m", llama(), TASK, found, settings, pytest.fail, again=True)


def test_it_leaves_no_trace_in_random_numbers_and_warnings() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    for name in ("lora", "ia3", "adalora", "p_tuning"):
        judged(llama(), name)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_model_of_eighty_layers_is_judged_on_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long is how many layers PEFT goes into; the whole is built once, to find targets in."""
    config = llama(num_hidden_layers=80, hidden_size=8192, intermediate_size=28672, num_attention_heads=64)
    gone_into: list[int] = []
    put = preflight._put
    monkeypatch.setattr(
        preflight, "_put", lambda model, *rest: gone_into.append(len(model.model.layers)) or put(model, *rest)
    )
    verdict = judged(config, "lora")
    assert (verdict.said, verdict.modules) == ("attaches", 560)
    assert gone_into == [2]


def test_a_deep_models_targets_are_looked_for_once_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    sought: list[str] = []
    find = targets.of

    def finding(model: Any, found: Method, settings: Any) -> Any:
        sought.append(found.name)
        return find(model, found, settings)

    monkeypatch.setattr(preflight, "METHODS", {name: METHODS[name] for name in ("lora", "ia3")})
    monkeypatch.setattr(targets, "of", finding)
    said = preflight.verdicts(llama(), TASK)
    assert sought == ["lora", "ia3"]
    assert said["lora"].parameters == LAYERS * 16 * (4 * 32 + 2 * 48 + 3 * 96)


def test_training_refuses_before_rows_are_encoded_or_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftctl.train import job

    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("weights were loaded"))
    monkeypatch.setattr(job, "supplied", lambda *_: pytest.fail("rows were encoded"))
    folder = tiny.save(tmp_path / "model", TASK.model_class().from_config(olmo()))
    with pytest.raises(UsageError, match="'q_prj' matches no module"):
        jobs.train(tmp_path, folder, method={"targets": "q_prj"})


def test_an_architecture_that_no_table_has_seen_trains(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model", TASK.model_class().from_config(olmo()))
    run, events = jobs.train(tmp_path, folder)
    assert not [event for event in events if event["event"] == "warning"]
    assert len(jobs.manifest(run)["targets"]) == 7 * LAYERS


def test_anatomy_of_a_model_without_attention_has_no_keys() -> None:
    model = skeleton.build(mamba(), TASK).small
    found: Mapping[str, tuple[int, int]] = targets.resolve(model, ["all-linear"])
    assert attach.anatomy(model, found).key_width == 0
