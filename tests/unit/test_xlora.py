"""X-LoRA against its formula and PEFT's own, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peftctl.errors import UsageError
from peftctl.methods import METHODS, BaseName, DataFacts
from peftctl.methods.xlora import XLoraSettings
from peftctl.model import adapter, attach
from peftctl.model.profile import profile
from peftctl.tasks import TASKS
from tests import tiny

XLORA = METHODS["xlora"]
FACTS = DataFacts(rows=8, tokens=100, supervised_tokens=50, longest=20, steps=20)
IDS = torch.tensor([[1, 2, 3, 4, 5, 6, 7], [9, 8, 7, 6, 5, 4, 3]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
# Two that share some layers and differ in the others, in rank and in scale: 6 layers in all.
FIRST = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}
SECOND = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "use_rslora": True}
# Sums of up to 64 products in float32, through two layers.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def expert(folder: Path, seed: int, base: Any = None, **config: Any) -> Path:
    """A LoRA adapter of random numbers, as PEFT writes it."""
    from peft import LoraConfig, get_peft_model

    made = get_peft_model(base or tiny.llama(), LoraConfig(task_type="CAUSAL_LM", **config))
    generator = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("experts")
    return str(expert(folder / "first", 1, **FIRST)), str(expert(folder / "second", 2, **SECOND))


def settings_of(pair: tuple[str, ...], **settings: Any) -> Any:
    return XLORA.resolve(XLoraSettings(adapters=pair, **settings))


def put(pair: tuple[str, ...], model: Any = None, **settings: Any) -> tuple[Any, Any]:
    """The PEFT model in eval mode, its classifier full of random numbers, and the settings resolved."""
    made = settings_of(pair, **settings)
    base = (model or tiny.llama()).eval().requires_grad_(False)
    anatomy = attach.anatomy(base, {}, XLORA.beside(base, made))
    torch.manual_seed(0)
    mixed = attach.attach(base, XLORA, made, anatomy, "CAUSAL_LM", FACTS).eval()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in mixed.named_parameters():
        if "classifier" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return mixed, made


def logits(model: Any, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs, use_cache=False).logits
    return found


# The formula, written out on a model without PEFT.


def with_weights(pair: tuple[str, ...], weights: Callable[[int], torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and last hidden states of the base with the adapters in it; ``weights`` gives a layer's, [rows, length, 2]
    or one that fits it, by its number among the changed layers."""
    base = tiny.llama().eval()
    experts = []
    for folder in pair:
        config = json.loads((Path(folder) / "adapter_config.json").read_text())
        scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
        experts.append((scale, load_file(Path(folder) / "adapter_model.safetensors")))
    changed = [
        name
        for name, module in base.named_modules()
        if any(f"base_model.model.{name}.lora_A.weight" in tensors for _, tensors in experts)
    ]
    assert len(changed) == 6
    for number, name in enumerate(changed):

        def add(_: Any, inputs: Any, output: torch.Tensor, number: int = number, name: str = name) -> torch.Tensor:
            x, s = inputs[0], weights(number)
            for index, (scale, tensors) in enumerate(experts):
                key = f"base_model.model.{name}.lora_"
                if f"{key}A.weight" in tensors:
                    update = tensors[f"{key}B.weight"] @ tensors[f"{key}A.weight"]
                    output = output + s[..., index : index + 1] * scale * (x @ update.T)
            return output

        base.get_submodule(name).register_forward_hook(add)
    with torch.no_grad():
        done = base(**INPUTS, use_cache=False, output_hidden_states=True)
    return done.logits, done.hidden_states[-1]


def formula(pair: tuple[str, ...], mixed: Any, made: Any) -> torch.Tensor:
    _, z = with_weights(pair, lambda _: torch.full((1, 1, 2), made.first_pass))
    tensors = mixed.base_model.internal_xlora_classifier.state_dict()
    linear = sorted({name.rsplit(".", 1)[0] for name in tensors}, key=lambda name: int(name.split(".")[1]))
    assert len(linear) == made.depth
    for name in linear[:-1]:
        z = (z @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]).clamp(min=0)
    out = z @ tensors[f"{linear[-1]}.weight"].T + tensors[f"{linear[-1]}.bias"]
    # [rows, length, layers, 2]
    s = out.unflatten(-1, (6, 2)) if made.layerwise else out[:, :, None].expand(-1, -1, 6, -1)
    if made.softmax == "all":
        s = (s / made.temperature).exp() / (s / made.temperature).exp().sum(-1, keepdim=True)
    if made.top_k == 1:
        s = torch.where(s == s.amax(-1, keepdim=True), s, torch.zeros(()))
    return with_weights(pair, lambda number: made.scale * s[:, :, number])[0]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"layerwise": False},
        {"depth": 3, "hidden": 8},
        {"temperature": 0.25},
        {"softmax": "none"},
        {"top_k": 1},
        {"softmax": "none", "top_k": 1},
        {"scale": 2.0},
        {"first_pass": 0.4},
    ],
)
def test_the_adapters_are_weighed_as_the_formula_says(settings: dict[str, Any], pair: tuple[str, str]) -> None:
    mixed, made = put(pair, **settings)
    wanted = formula(pair, mixed, made)
    found = logits(mixed, **INPUTS)
    torch.testing.assert_close(found, wanted, **CLOSE)
    plain, plainly = put(pair)
    if settings:  # or a setting that does nothing would pass
        assert float((formula(pair, plain, plainly) - found).abs().max()) > 0.05
    assert float((logits(tiny.llama().eval(), **INPUTS) - found).abs().max()) > 0.5


def test_a_softmax_over_the_chosen_alone_gives_them_all_the_weight(tmp_path: Path, pair: tuple[str, str]) -> None:
    three = (*pair, str(expert(tmp_path / "third", 3, **FIRST)))
    mixed, _ = put(three, softmax="top_k", top_k=2)
    seen: list[torch.Tensor] = []
    layer = mixed.base_model.lora_model.model.model.layers[0].self_attn.q_proj
    weigh = layer.forward.__self__.get_maybe_topk_scalings
    layer.forward.__self__.get_maybe_topk_scalings = lambda scalings: seen.append(weigh(scalings)) or seen[-1]
    logits(mixed, **INPUTS)
    weights = seen[-1]
    assert ((weights > 0).sum(-1) == 2).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 7))


@pytest.mark.parametrize("settings", [{}, {"depth": 2, "hidden": 8}, {"top_k": 1}])
def test_the_logits_are_those_of_peft_s_own_mixture(settings: dict[str, Any], pair: tuple[str, str]) -> None:
    from peft import XLoraConfig, get_peft_model

    mixed, made = put(pair, **settings)
    base = tiny.llama().eval()
    base.config.use_cache = False
    config = XLoraConfig(
        task_type="CAUSAL_LM", hidden_size=32, adapters={"0": pair[0], "1": pair[1]}, layerwise_scalings=True,
        xlora_depth=made.depth, xlora_size=made.hidden or 2048, top_k_lora=made.top_k,
    )  # fmt: skip
    theirs = get_peft_model(base, config).eval()
    theirs.base_model.internal_xlora_classifier.load_state_dict(mixed.base_model.internal_xlora_classifier.state_dict())
    assert torch.equal(logits(theirs, **INPUTS), logits(mixed, **INPUTS))


# Two passes.


def test_a_row_s_weights_are_its_own_whatever_it_is_padded_with(pair: tuple[str, str]) -> None:
    mixed, _ = put(pair)
    alone = [logits(mixed, input_ids=IDS[:1]), logits(mixed, input_ids=IDS[1:, :4])]
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
    padded = logits(mixed, input_ids=IDS, attention_mask=mask)
    torch.testing.assert_close(padded[:1], alone[0], **CLOSE)
    torch.testing.assert_close(padded[1:, :4], alone[1], **CLOSE)
    left = torch.cat([torch.full((1, 3), 250), IDS[1:, :4]], dim=1)
    positions = torch.tensor([[0, 0, 0, 0, 1, 2, 3]])
    found = logits(mixed, input_ids=left, attention_mask=mask[1:].flip(1), position_ids=positions)
    torch.testing.assert_close(found[:, 3:], alone[1], **CLOSE)
    # No token's weights depend on what follows it.
    torch.testing.assert_close(logits(mixed, input_ids=IDS[:1, :3]), alone[0][:, :3], **CLOSE)


def test_packed_rows_give_what_they_give_alone(pair: tuple[str, str]) -> None:
    mixed, _ = put(pair)
    known = profile(mixed, TASKS["causal_lm"], True, torch.float32)
    assert (known.packs, known.why_not) == (True, "")


def test_a_pass_leaves_nothing_behind_for_the_next(pair: tuple[str, str]) -> None:
    mixed, _ = put(pair, depth=2, hidden=8)
    trained = {name for name, p in mixed.named_parameters() if p.requires_grad}
    first = logits(mixed, **INPUTS)
    logits(mixed, input_ids=IDS[:1] + 20)
    with pytest.raises(IndexError):
        mixed(input_ids=torch.tensor([[9999]]))
    with mixed.disable_adapter():
        assert torch.equal(logits(mixed, **INPUTS), logits(tiny.llama().eval(), **INPUTS))
    mixed.train()
    mixed(**INPUTS, use_cache=False).logits.sum().backward()
    mixed.eval()
    mixed.generate(**INPUTS, max_new_tokens=2, do_sample=False)
    assert torch.equal(logits(mixed, **INPUTS), first)
    assert {name for name, p in mixed.named_parameters() if p.requires_grad} == trained
    assert all("internal_xlora_classifier" in name for name in trained)
    assert mixed.config.use_cache is tiny.llama().config.use_cache is True


def test_generation_is_the_same_with_a_cache_asked_for_and_without(pair: tuple[str, str]) -> None:
    mixed, _ = put(pair)
    ids = IDS[:1]
    for _ in range(6):
        ids = torch.cat([ids, logits(mixed, input_ids=ids)[:, -1:].argmax(-1)], dim=1)
    for cache in (True, False, None):
        asked = {} if cache is None else {"use_cache": cache}
        made = mixed.generate(
            input_ids=IDS[:1], attention_mask=torch.ones(1, 7), max_new_tokens=6, do_sample=False, eos_token_id=None,
            **asked,
        )  # fmt: skip
        assert torch.equal(made, ids)
    # Rows of two lengths, padded on the left, as a batch.
    rows = torch.stack([IDS[0], torch.cat([torch.full((3,), 258), IDS[0, 3:]])])
    mask = torch.tensor([[1] * 7, [0] * 3 + [1] * 4])
    together = mixed.generate(input_ids=rows, attention_mask=mask, max_new_tokens=4, do_sample=False, eos_token_id=None)
    for row in range(2):
        alone = rows[row : row + 1, mask[row].bool()]
        single = mixed.generate(
            input_ids=alone, attention_mask=torch.ones_like(alone), max_new_tokens=4, do_sample=False, eos_token_id=None
        )
        assert torch.equal(together[row, 7:], single[0, alone.shape[1] :])


def test_a_cache_is_refused_which_both_passes_would_fill(pair: tuple[str, str]) -> None:
    from transformers import DynamicCache

    mixed, _ = put(pair)
    cache = DynamicCache(config=mixed.config)
    with pytest.raises(UsageError, match="xlora: computes every token twice, and cannot go on from a cache"):
        mixed(input_ids=IDS, past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 0
    with mixed.disable_adapter(), torch.no_grad():
        mixed(input_ids=IDS, past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 7


def test_gradient_checkpointing_is_refused_in_training_alone(pair: tuple[str, str]) -> None:
    mixed, _ = put(pair)
    mixed.get_base_model().activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    mixed.train()
    with pytest.raises(UsageError, match=r"train\.gradient_checkpointing: .* xlora"):
        mixed(**INPUTS, use_cache=False)
    logits(mixed.eval(), **INPUTS)


# What is trained.

# Worked out by hand: width 32; 2 adapters, 6 layers. Llama's layers: q 32 to 32, v 32 to 16, down 64 to 32, twice.
RANKS = 2 * (4 * (32 + 32) + 4 * (32 + 16) + 2 * (32 + 32) + 2 * (64 + 32))
COUNTS: list[tuple[dict[str, Any], int]] = [
    ({}, 33 * 12),
    ({"layerwise": False}, 33 * 2),
    ({"depth": 2, "hidden": 8}, 33 * 8 + 9 * 12),
    ({"depth": 4, "hidden": 8, "layerwise": False}, 33 * 8 + 2 * 9 * 8 + 9 * 2),
    ({"depth": 2}, 33 * 2048 + 2049 * 12),
    ({"train_adapters": True}, 33 * 12 + RANKS),
]


@pytest.mark.parametrize(("settings", "count"), COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_so_many_parameters_are_trained_all_in_float32(
    settings: dict[str, Any], count: int, dtype: Any, pair: tuple[str, str]
) -> None:
    mixed, made = put(pair, tiny.llama().to(dtype), **settings)
    trained = {name: p for name, p in mixed.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == count
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert any("lora_A" in name for name in trained) is made.train_adapters
    mixed.train()
    mixed(**INPUTS, use_cache=False).logits.float().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in trained.values())
    frozen = [name for name, p in mixed.named_parameters() if name not in trained and p.grad is not None]
    assert frozen == []


@pytest.mark.parametrize("train_adapters", [False, True])
def test_adapters_have_their_dropout_back_only_where_they_are_trained(train_adapters: bool, tmp_path: Path) -> None:
    dropped = {**FIRST, "lora_dropout": 0.5}
    pair = (str(expert(tmp_path / "a", 1, **dropped)), str(expert(tmp_path / "b", 2, **dropped)))
    mixed, _ = put(pair, train_adapters=train_adapters)
    mixed.train()
    torch.manual_seed(1)
    assert torch.equal(logits(mixed, **INPUTS), logits(mixed, **INPUTS)) is not train_adapters


def test_adapters_keep_all_their_bits_on_a_bfloat16_base(pair: tuple[str, str]) -> None:
    mixed, _ = put(pair, tiny.llama().to(torch.bfloat16))
    wanted = load_file(Path(pair[0]) / "adapter_model.safetensors")
    key = "model.layers.1.self_attn.v_proj.lora_{}"
    for part in "AB":
        name = f"{key.format(part)}.0.weight"
        found = dict(mixed.get_base_model().named_parameters())[name]
        assert torch.equal(found, wanted[f"base_model.model.{key.format(part)}.weight"])
        assert not torch.equal(found, found.bfloat16().float())


# Saved and read back.


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize("settings", [{}, {"depth": 3, "hidden": 8, "top_k": 1}, {"train_adapters": True}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_gives_the_same_bits_without_the_adapters_it_was_made_of(
    settings: dict[str, Any], dtype: Any, tmp_path: Path, pair: tuple[str, str]
) -> None:
    mixed, made = put(pair, tiny.llama().to(dtype), **settings)
    if made.train_adapters:
        for parameter in mixed.parameters():
            parameter.data += 0.01 * parameter.requires_grad
    wanted = logits(mixed, **INPUTS)
    (tmp_path / "saved").mkdir()
    XLORA.save(mixed, made, BaseName("org/base", "c0ffee"), tmp_path / "saved")
    gone = made.model_copy(update={"adapters": ("nowhere", "neither")})
    fresh = attach.load(tiny.llama().to(dtype).eval(), XLORA, gone, tmp_path / "saved")
    assert torch.equal(logits(fresh, **INPUTS), wanted)
    assert not any(p.requires_grad for p in fresh.parameters())
    again = adapter.reload(mixed, XLORA, gone, tmp_path / "saved")
    assert torch.equal(logits(again, **INPUTS), wanted)


def test_each_adapter_that_is_saved_is_the_one_it_was_as_plain_peft_loads_it(
    tmp_path: Path, pair: tuple[str, str]
) -> None:
    from peft import PeftModel

    mixed, made = put(pair)
    XLORA.save(mixed, made, BaseName("org/base", "c0ffee"), tmp_path)
    for number, folder in enumerate(pair):
        saved = tmp_path / "adapters" / str(number)
        before = PeftModel.from_pretrained(tiny.llama(), folder).eval()
        after = PeftModel.from_pretrained(tiny.llama(), saved).eval()
        assert torch.equal(logits(after, **INPUTS), logits(before, **INPUTS))
        config = json.loads((saved / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == ("org/base", "c0ffee")
        assert config["target_modules"] == sorted(config["target_modules"])


# Going on.


def test_a_mixture_goes_on_from_another(tmp_path: Path, pair: tuple[str, str]) -> None:
    for train_adapters in (False, True):
        mixed, made = put(pair, train_adapters=train_adapters)
        folder = tmp_path / str(train_adapters)
        folder.mkdir()
        for parameter in mixed.parameters():
            parameter.data += 0.01 * parameter.requires_grad
        XLORA.save(mixed, made, BaseName("base", None), folder)
        other, _ = put(pair, train_adapters=train_adapters)
        assert not torch.equal(logits(other, **INPUTS), logits(mixed, **INPUTS))
        XLORA.start_from(other, made, folder)
        assert torch.equal(logits(other, **INPUTS), logits(mixed, **INPUTS))


def test_it_does_not_go_on_with_other_adapters_or_with_weights_that_mean_something_else(
    tmp_path: Path, pair: tuple[str, str]
) -> None:
    mixed, made = put(pair)
    XLORA.save(mixed, made, BaseName("base", None), tmp_path)

    def refused(adapters: tuple[str, ...] = pair, **settings: Any) -> str:
        other, of_other = put(adapters, **settings)
        with pytest.raises(UsageError) as stopped:
            XLORA.start_from(other, of_other, tmp_path)
        return stopped.value.message

    assert "0 is not the adapter" in refused(pair[::-1])
    like = str(expert(tmp_path / "like", 7, **SECOND))  # of the same make, with other numbers
    assert f"1 is not the adapter {like}, and the classifier weighs it" in refused((pair[0], like))
    assert "temperature is 1.0 there and 2.0 here" in refused(temperature=2.0)
    assert "does not fit: layers.0" in refused(depth=2)
    with pytest.raises(UsageError, match=r"holds no peftctl_adapter\.json"):
        XLORA.start_from(mixed, made, Path(pair[0]))


# What is refused.


def refused(*adapters: Path | str, base: Any = None, **settings: Any) -> str:
    with pytest.raises(UsageError) as stopped:
        put(tuple(map(str, adapters)), base, **settings)
    return stopped.value.message


def test_folders_that_hold_no_lora_adapter_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    from peft import IA3Config, get_peft_model

    ok = pair[0]
    with pytest.raises(UsageError, match=r"method\.adapters: a mixture is of two adapters at least \(found 0\)"):
        XLORA.beside(tiny.llama(), XLoraSettings())
    assert refused(ok, ok) == f"method.adapters: {ok} is named twice"
    with pytest.raises(UsageError) as stopped:
        put((ok, str(Path(ok).parent / "frist")))
    assert stopped.value.message == f"method.adapters: no such folder: {Path(ok).parent / 'frist'}"
    assert stopped.value.hint == f"did you mean {ok}?"
    (tmp_path / "empty").mkdir()
    assert "is neither a run that left an adapter of PEFT nor such an adapter's folder" in refused(
        ok, tmp_path / "empty"
    )
    tuned = get_peft_model(tiny.llama(), IA3Config(task_type="CAUSAL_LM"))
    tuned.save_pretrained(tmp_path / "ia3")
    assert refused(ok, tmp_path / "ia3") == f"method.adapters: {tmp_path / 'ia3'} is IA3; allowed: LORA"
    expert(tmp_path / "pickled", 1, **FIRST)
    (tmp_path / "pickled" / "adapter_model.safetensors").rename(tmp_path / "pickled" / "adapter_model.bin")
    assert "holds no adapter_model.safetensors" in refused(ok, tmp_path / "pickled")
    expert(tmp_path / "broken", 1, **FIRST)
    (tmp_path / "broken" / "adapter_config.json").write_text("{")
    assert "adapter_config.json is no JSON object that can be read" in refused(ok, tmp_path / "broken")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "use_dora is True"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices is [3]"),
        ({"use_what_is_not_yet_made": True}, "use_what_is_not_yet_made is True"),
        ({"init_lora_weights": "pissa"}, "it started as pissa, which may change the base"),
    ],
)
def test_an_adapter_that_is_more_than_lora_is_refused(
    config: dict[str, Any], said: str, tmp_path: Path, pair: tuple[str, str]
) -> None:
    expert(tmp_path / "odd", 1, **FIRST)
    file = tmp_path / "odd" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    assert refused(pair[0], tmp_path / "odd") == f"method.adapters: {tmp_path / 'odd'} is no plain LoRA: {said}"


@pytest.mark.parametrize("start", ["gaussian", "orthogonal", False])
def test_how_an_adapter_began_does_not_matter_where_the_base_stayed(
    start: Any, tmp_path: Path, pair: tuple[str, str]
) -> None:
    put((pair[0], str(expert(tmp_path / "other", 3, **FIRST, init_lora_weights=start))))


def test_an_adapter_of_another_task_or_model_is_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    ok = pair[0]
    expert(tmp_path / "task", 1, **FIRST)
    config = tmp_path / "task" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"task_type": "SEQ_CLS"}))
    assert refused(ok, tmp_path / "task") == f"method.adapters: {tmp_path / 'task'} is for SEQ_CLS; allowed: CAUSAL_LM"
    wide = expert(tmp_path / "wide", 1, tiny.llama(hidden_size=64), **FIRST)
    assert refused(ok, wide) == (
        f"method.adapters: {wide} was trained on another model: model.layers.0.self_attn.q_proj goes from 64 to 64 "
        "there, 32 to 32 here"
    )
    deep = expert(tmp_path / "deep", 1, tiny.llama(num_hidden_layers=3), **FIRST)
    assert "changes model.layers.2.self_attn.q_proj, which this LlamaForCausalLM does not have" in refused(ok, deep)
    conv = {"r": 2, "target_modules": ["c_attn"], "fan_in_fan_out": True}
    gpt2 = [expert(tmp_path / f"gpt2{n}", n, tiny.gpt2(), **conv) for n in range(2)]
    assert refused(*gpt2, base=tiny.gpt2()) == (
        "method: xlora reaches only what lies below `model.` in PEFT, and transformer.h.0.attn.c_attn of "
        "GPT2LMHeadModel does not"
    )


def test_an_adapter_with_odd_tensors_is_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    file = tmp_path / "odd" / "adapter_model.safetensors"
    expert(tmp_path / "odd", 1, **FIRST)
    tensors = load_file(file)
    one = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for changed, said in (
        ({one: None}, "holds one of the two matrices of model.layers.0.self_attn.q_proj alone"),
        ({one + "s": tensors[one].clone()}, f"holds {one}s, which is none of LoRA's two matrices of a linear layer"),
        (dict.fromkeys(tensors), "changes no layer"),
        ({one: tensors[one][:2].clone()}, "an adapter does not fit its own config"),
    ):
        save_file({name: value for name, value in {**tensors, **changed}.items() if value is not None}, file)
        assert said in refused(pair[0], tmp_path / "odd")


def test_a_quantised_layer_is_refused(pair: tuple[str, str]) -> None:
    from bitsandbytes.nn import Linear8bitLt

    base = tiny.llama()
    layer = Linear8bitLt(32, 32, bias=False, has_fp16_weights=False)
    layer.weight.data = torch.zeros(32, 32, dtype=torch.int8)
    base.model.layers[1].self_attn.q_proj = layer
    assert refused(*pair, base=base) == (
        "method: xlora mixes on plain layers only, and model.layers.1.self_attn.q_proj is quantised"
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hidden": 8}, "method.hidden: has no effect on a classifier of depth 1"),
        ({"dropout": 0.1}, "method.dropout: has no effect on a classifier of depth 1"),
        ({"temperature": 2.0, "softmax": "none"}, "method.temperature: has no effect with softmax: none"),
        ({"softmax": "top_k"}, "method.softmax: `top_k` needs method.top_k, which says how many adapters are chosen"),
        ({"top_k": 2}, "method.top_k: out of range (found 2); allowed: 1 to 1"),
        ({"top_k": 1, "softmax": "top_k"}, "method.top_k: out of range (found 1); allowed: nothing with 2 adapters"),
        (
            {"top_k": 1, "first_pass": 0.5},
            "method.first_pass: weighs all adapters alike, so that method.top_k has nothing to choose by",
        ),
    ],
)
def test_a_setting_without_effect_is_refused(settings: dict[str, Any], said: str, pair: tuple[str, str]) -> None:
    assert refused(*pair, **settings) == said


def test_resolving_says_what_is_open_and_changes_nothing_twice(pair: tuple[str, str]) -> None:
    assert (settings_of(pair).hidden, settings_of(pair).dropout) == (None, None)
    deep = settings_of(pair, depth=2)
    assert (deep.hidden, deep.dropout) == (2048, 0.2)
    assert XLORA.resolve(deep) == deep
    assert settings_of(pair, depth=2, dropout=0.0).dropout == 0.0
