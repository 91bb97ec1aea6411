"""What stands before a row: where it starts, what makes it, what is kept of it, and that it is learned around."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

import peftctl
from peftctl import recipe
from peftctl.errors import RecipeError, UsageError
from peftctl.methods import METHODS, Anatomy, BaseName, DataFacts
from peftctl.model import adapter, attach, load
from peftctl.model.head import Head, plain_head
from peftctl.model.locate import Base
from peftctl.objectives import OBJECTIVES
from peftctl.recipe import able
from peftctl.recipe.schema import ModelSettings
from peftctl.tasks import TASKS, Layout, tensors
from peftctl.text.tokens import Encoded
from tests import jobs, tiny
from tests.unit import kinds

FACTS = DataFacts(rows=8, tokens=100, supervised_tokens=50, longest=20, steps=20)
IDS = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
INPUTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
MODELS = {
    "llama": tiny.llama,
    "qwen2": tiny.qwen2,
    "qwen3": tiny.qwen3,
    "gemma2": tiny.gemma2,
    "gpt2": lambda: tiny.gpt2(dropout=0.0),
}
# Every way of making what stands before a row.
WAYS: dict[str, dict[str, Any]] = {
    "prompt_tuning": {"name": "prompt_tuning"},
    "p_tuning": {"name": "p_tuning", "hidden": 8},
    "lstm": {"name": "p_tuning", "network": "lstm", "hidden": 8, "layers": 3, "dropout": 0.5},
    "prefix_tuning": {"name": "prefix_tuning"},
    "prefix_network": {"name": "prefix_tuning", "hidden": 8},
}
# Sums of up to 128 products in float32, through two layers.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def put(model: Any, name: str, *, full: bool = False, seed: int = 0, **settings: Any) -> tuple[Any, Any]:
    """The PEFT model in eval mode and the settings resolved; ``full``: of random numbers in place of its start."""
    method = METHODS[name]
    made = method.resolve(method.settings(name=name, **settings))
    torch.manual_seed(seed)
    model = model.eval().requires_grad_(False)
    put_in = attach.attach(model, method, made, attach.anatomy(model, {}), "CAUSAL_LM", FACTS).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in put_in.parameters():
        if full and parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return put_in, made


def encoder(model: Any) -> Any:
    return model.prompt_encoder["default"]


def logits(model: Any, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(**inputs, use_cache=False).logits
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = tmp_path_factory.mktemp("bases")
    return {kind: tiny.save(made / kind, model()) for kind, model in MODELS.items()}


def read(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


# Starting from a text.

TEXT = "odd or even?"  # 12 bytes, a token each


@pytest.mark.parametrize("kind", MODELS)
def test_a_prefix_of_a_text_is_what_the_model_makes_of_the_text(kind: str, folders: dict[str, Path]) -> None:
    words = torch.tensor(tiny.tokenizer()(TEXT)["input_ids"])
    assert len(words) == 12
    whole = torch.cat([words.expand(2, 12), IDS], dim=1)
    wanted = logits(read(folders[kind]), input_ids=whole, attention_mask=torch.ones_like(whole))[:, 12:]
    model, _ = put(read(folders[kind]), "prefix_tuning", tokens=12, init="text", text=TEXT)
    torch.testing.assert_close(logits(model, **INPUTS), wanted, **CLOSE)
    zero, _ = put(read(folders[kind]), "prefix_tuning", tokens=12)
    assert float((logits(zero, **INPUTS) - wanted).abs().max()) > 1e-2


def test_a_text_that_is_too_short_is_said_again_and_one_that_is_too_long_refused(folders: dict[str, Path]) -> None:
    ids = tiny.tokenizer()(TEXT)["input_ids"]
    again = torch.tensor([*ids, *ids, *ids])[:30]
    words = read(folders["llama"]).get_input_embeddings().weight
    prompt, _ = put(read(folders["llama"]), "prompt_tuning", tokens=30, init="text", text=TEXT)
    assert torch.equal(encoder(prompt).embedding.weight, words[again])
    prefix, _ = put(read(folders["llama"]), "prefix_tuning", tokens=30, init="text", text=TEXT)
    other, _ = put(read(folders["llama"]), "prefix_tuning", tokens=30, init="text", text=(TEXT * 3)[:30])
    assert torch.equal(encoder(prefix).embedding.weight, encoder(other).embedding.weight)
    for name in ("prompt_tuning", "prefix_tuning"):
        put(read(folders["llama"]), name, tokens=12, init="text", text=TEXT)
        with pytest.raises(UsageError) as refused:
            put(read(folders["llama"]), name, tokens=11, init="text", text=TEXT)
        assert refused.value.message == "method.text: does not fit into method.tokens (12 tokens into 11)"
        assert refused.value.hint == "tokens: 12 has room for all of it"


@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning"])
def test_a_text_begins_as_the_tokenizer_begins_one(name: str, tmp_path: Path) -> None:
    tiny.llama(vocab_size=600).save_pretrained(tmp_path)
    kinds.sentencepiece(prefix=False, begins=True).save_pretrained(tmp_path)
    model, _ = put(read(tmp_path), name, tokens=4, init="text", text="odd")
    plain = read(tmp_path)
    tokenizer = kinds.sentencepiece(prefix=False, begins=True)
    ids = torch.tensor([[1, *tokenizer.convert_tokens_to_ids(["o", "d", "d"])]])
    if name == "prompt_tuning":
        assert torch.equal(encoder(model).embedding.weight, plain.get_input_embeddings()(ids)[0])
        return
    whole = torch.cat([ids, IDS[:1]], dim=1)
    torch.testing.assert_close(
        logits(model, input_ids=IDS[:1], attention_mask=torch.ones(1, 5)),
        logits(plain, input_ids=whole)[:, 4:],
        **CLOSE,
    )


@pytest.mark.parametrize("settings", [{"text": "odd?"}, {"init": "text"}, {"init": "random", "text": "odd?"}])
@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning"])
def test_a_text_goes_with_init_text_alone(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"method\.text: is what `init: text` starts from, and needed there alone"):
        put(tiny.llama(), name, **settings)


def test_a_text_needs_the_tokenizer_beside_the_model(tmp_path: Path) -> None:
    tiny.llama().save_pretrained(tmp_path)
    for name in ("prompt_tuning", "prefix_tuning"):
        with pytest.raises(UsageError, match=rf"method\.text: the tokenizer of {tmp_path} cannot be loaded: "):
            put(read(tmp_path), name, init="text", text="odd?")


@pytest.mark.parametrize("origin", ["folder", "gguf", "hub"])
@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning"])
def test_the_tokenizer_is_read_where_the_model_was_and_named_as_the_base_is(
    name: str, origin: Any, folders: dict[str, Path], tmp_path: Path
) -> None:
    commit = "c0ffee" if origin == "hub" else None
    base = Base("org/name" if origin == "hub" else str(folders["llama"]), folders["llama"], origin, commit)
    model = load.load_model(base, ModelSettings(name="a/b"), TASKS["causal_lm"], "float32")
    made, settings = put(model, name, tokens=12, init="text", text=TEXT)
    METHODS[name].save(made, settings, BaseName(base.name, base.commit), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (str(folders["llama"]) in json.dumps(config)) is (origin != "hub")
    assert (config["base_model_name_or_path"], config["revision"]) == (base.name, commit)
    assert config.get("tokenizer_name_or_path") == (base.name if name == "prompt_tuning" else None)
    fresh = METHODS[name].load(read(folders["llama"]), settings, tmp_path)
    assert torch.equal(logits(fresh, **INPUTS), logits(made, **INPUTS))


# Starting from the vocabulary.


def test_vocabulary_vectors_are_drawn_by_the_seed() -> None:
    drawn = [
        encoder(put(tiny.llama(), "prompt_tuning", tokens=6, seed=seed)[0]).embedding.weight.detach()
        for seed in (1, 1, 2)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# What makes them.


def lstm(module: Any, x: Any) -> Any:
    """torch.nn.LSTM by its formula in float64: [length, inputs] to [length, 2 * hidden], each layer both ways."""
    weights = {name: value.detach().double().numpy() for name, value in module.named_parameters()}

    def one_way(x: Any, suffix: str) -> Any:
        h, c, out = 0.0 * weights[f"weight_hh{suffix}"][0], 0.0 * weights[f"weight_hh{suffix}"][0], []
        for each in x:
            gates = weights[f"weight_ih{suffix}"] @ each + weights[f"bias_ih{suffix}"]
            gates = gates + weights[f"weight_hh{suffix}"] @ h + weights[f"bias_hh{suffix}"]
            i, f, g, o = np.split(gates, 4)
            c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
            h = np.tanh(c) / (1 + np.exp(-o))
            out.append(h)
        return np.stack(out)

    for layer in range(module.num_layers):
        forth, back = one_way(x, f"_l{layer}"), one_way(x[::-1], f"_l{layer}_reverse")[::-1]
        x = np.concatenate([forth, back], axis=1)
    return x


@pytest.mark.parametrize("layers", [1, 3])
def test_an_lstm_makes_the_vectors_as_the_formula_says(layers: int) -> None:
    model, _ = put(tiny.llama(), "p_tuning", full=True, tokens=4, network="lstm", hidden=8, layers=layers)
    made_by = encoder(model)
    first, second = (layer for layer in made_by.mlp_head if isinstance(layer, torch.nn.Linear))
    x = lstm(made_by.lstm_head, made_by.embedding.weight.detach().double().numpy())
    assert x.shape == (4, 16)
    x = np.maximum(x @ first.weight.detach().double().numpy().T + first.bias.detach().double().numpy(), 0)
    x = x @ second.weight.detach().double().numpy().T + second.bias.detach().double().numpy()
    assert x.shape == (4, 32)
    base = model.get_base_model()
    whole = torch.cat([torch.from_numpy(x).float().expand(2, 4, 32), base.get_input_embeddings()(IDS)], dim=1)
    torch.testing.assert_close(logits(model, **INPUTS), logits(base, inputs_embeds=whole), **CLOSE)


@pytest.mark.parametrize("kind", MODELS)
def test_a_network_makes_keys_and_values_as_the_formula_says(kind: str) -> None:
    from transformers import DynamicCache

    model, _ = put(MODELS[kind](), "prefix_tuning", full=True, tokens=3, hidden=8)
    made_by, base = encoder(model), model.get_base_model()
    first, second = (layer for layer in made_by.transform if isinstance(layer, torch.nn.Linear))
    x = made_by.embedding.weight.detach().double()
    x = torch.tanh(x @ first.weight.double().T + first.bias.double())
    heads = 4 if kind == "gpt2" else 2
    vectors = (x @ second.weight.double().T + second.bias.double()).detach().float()
    cache = DynamicCache(config=base.config)
    for layer, (keys, values) in enumerate(vectors.view(3, 2, 2, heads, 8).permute(1, 2, 3, 0, 4)):
        cache.update(keys.expand(2, heads, 3, 8), values.expand(2, heads, 3, 8), layer)
    with torch.no_grad():
        wanted = base(IDS, past_key_values=cache, attention_mask=torch.ones(2, 8), use_cache=True).logits
    torch.testing.assert_close(logits(model, **INPUTS), wanted, **CLOSE)


def test_a_network_of_a_prefix_starts_at_zero_too() -> None:
    model, _ = put(tiny.llama(), "prefix_tuning", tokens=3, hidden=8)
    assert not encoder(model)(torch.arange(3)).any()
    model(**INPUTS, use_cache=False).logits.sum().backward()
    assert bool(encoder(model).transform[-1].weight.grad.any())
    model, _ = put(tiny.llama(), "prefix_tuning", tokens=3, hidden=8, init="random")
    assert float(encoder(model)(torch.arange(3)).detach().std()) > 0.05


# Published by PEFT's method comparison for Llama-3.2-3B: width 3072, 28 layers, 8 key heads of 128.
LLAMA = Anatomy({}, 3072, 28, 1024)
PUBLISHED: list[tuple[str, dict[str, Any], int]] = [
    ("p_tuning", {"tokens": 20, "hidden": 3072}, 28_382_208),
    ("p_tuning", {"tokens": 50, "hidden": 3072}, 28_474_368),
    ("p_tuning", {"tokens": 20, "hidden": 3072, "network": "lstm"}, 434_279_424),
    ("p_tuning", {"tokens": 50, "hidden": 3072, "network": "lstm"}, 434_371_584),
    ("prefix_tuning", {"tokens": 50}, 2_867_200),
    ("prefix_tuning", {"tokens": 200}, 11_468_800),
]


@pytest.mark.parametrize(("name", "settings", "count"), PUBLISHED)
def test_so_many_parameters_are_trained_as_peft_counted(name: str, settings: dict[str, Any], count: int) -> None:
    method = METHODS[name]
    assert method.parameters(method.resolve(method.settings(name=name, **settings)), LLAMA) == count


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("tokens", [1, 3])
def test_the_formula_counts_what_is_trained(way: str, kind: str, tokens: int) -> None:
    model, made = put(MODELS[kind](), **WAYS[way], tokens=tokens)  # attach compares, and refuses a difference
    anatomy = attach.anatomy(model.get_base_model(), {})
    assert METHODS[made.name].parameters(made, anatomy) == attach.trainable(model)
    by_hand = {
        ("prompt_tuning", "llama"): 32 * tokens,
        ("p_tuning", "llama"): 32 * tokens + (33 * 8 + 9 * 8 + 9 * 32),
        ("lstm", "llama"): 32 * tokens + 64 * (32 + 10) + 2 * 64 * (16 + 10) + 17 * 16 + 17 * 32,
        ("prefix_tuning", "llama"): 2 * 2 * 16 * tokens,
        ("prefix_network", "llama"): 16 * tokens + 17 * 8 + 9 * 2 * 2 * 16,
    }
    assert attach.trainable(model) == by_hand.get((way, kind), attach.trainable(model))


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("p_tuning", {"layers": 2}, "method.layers: has no effect with network: mlp"),
        ("p_tuning", {"dropout": 0.1}, "method.dropout: has no effect but between the layers of an LSTM"),
        ("p_tuning", {"dropout": 0.1, "network": "lstm", "layers": 1}, "method.dropout: has no effect but between"),
        ("prefix_tuning", {"hidden": 8, "init": "text", "text": "a"}, "method.init: a text's keys and values cannot"),
    ],
)
def test_what_has_no_effect_is_refused(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        put(tiny.llama(), name, **settings)
    assert refused.value.message.startswith(said)


def test_resolving_says_what_is_open_and_changes_nothing_twice() -> None:
    method = METHODS["p_tuning"]
    assert method.resolve(method.settings()).model_dump()["layers"] is None
    made = method.resolve(method.settings(network="lstm", dropout=0.1))
    assert made.model_dump()["layers"] == 2
    assert method.resolve(made) == made


# What is kept.


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_is_what_was_made_without_dropout_bit_for_bit(
    way: str, kind: str, dtype: Any, tmp_path: Path
) -> None:
    model, made = put(MODELS[kind]().to(dtype), **WAYS[way], full=True, tokens=3)
    one = {name: value[:1] for name, value in INPUTS.items()}
    wanted = logits(model, **one)
    model.train()  # what is saved from here must be no other
    METHODS[made.name].save(model, made, BaseName("base", None), tmp_path)
    fresh = attach.load(MODELS[kind]().to(dtype).eval(), METHODS[made.name], made, tmp_path)
    assert torch.equal(logits(fresh, **one), wanted)
    again = adapter.reload(model, METHODS[made.name], made, tmp_path)
    assert torch.equal(logits(again, **one), wanted)
    base = MODELS[kind]().to(dtype).eval()
    with fresh.disable_adapter():
        assert torch.equal(logits(fresh, **one), logits(base, **one))


def test_dropout_is_there_while_training_alone() -> None:
    model, _ = put(tiny.llama(), **WAYS["lstm"], full=True, tokens=3)
    torch.manual_seed(0)
    assert torch.equal(logits(model, **INPUTS), logits(model, **INPUTS))
    model.train()
    assert not torch.equal(logits(model, **INPUTS), logits(model, **INPUTS))


@pytest.mark.parametrize("way", ["p_tuning", "lstm", "prefix_network"])
def test_no_run_goes_on_from_what_a_network_made(way: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        jobs.recipe_text(tmp_path, tmp_path, method=WAYS[way], train={"init_from": "first"})
    )
    with pytest.raises(UsageError) as refused:
        able.judge(recipe.load(tmp_path / "recipe.yaml"))
    name = WAYS[way]["name"]
    assert refused.value.message.startswith(f"train.init_from: {name} keeps what its network made, and not the network")
    with pytest.raises(RecipeError) as early:
        recipe.check(tmp_path / "recipe.yaml")
    assert ("train.init_from", None) in [(fault.key, fault.also) for fault in early.value.faults]


@pytest.mark.parametrize("way", ["prompt_tuning", "prefix_tuning"])
def test_a_run_goes_on_from_vectors_however_they_began(way: str, tmp_path: Path) -> None:
    model, made = put(tiny.llama(), **WAYS[way], full=True, tokens=3)
    METHODS[made.name].save(model, made, BaseName("base", None), tmp_path)
    other, of_other = put(tiny.llama(), **WAYS[way], init="random", tokens=3)
    METHODS[made.name].start_from(other, of_other, tmp_path)
    assert torch.equal(logits(other, **INPUTS), logits(model, **INPUTS))
    longer, of_longer = put(tiny.llama(), **WAYS[way], tokens=4)
    with pytest.raises(UsageError, match="tokens is 3 there and 4 here"):
        METHODS[made.name].start_from(longer, of_longer, tmp_path)


def test_a_prefix_does_not_go_on_from_one_that_a_network_made(tmp_path: Path) -> None:
    model, made = put(tiny.llama(), "prefix_tuning", tokens=3, hidden=8)
    METHODS["prefix_tuning"].save(model, made, BaseName("base", None), tmp_path)
    other, of_other = put(tiny.llama(), "prefix_tuning", tokens=3)
    with pytest.raises(UsageError, match="prefix_projection is True there and False here"):
        METHODS["prefix_tuning"].start_from(other, of_other, tmp_path)


# What is learned is the text behind them.

ROWS = [
    Encoded((5, 6, 7, 8, 9, 10), (0.0, 0.0, 1.0, 1.0, 0.5, 1.0)),
    Encoded((11, 12, 13), (1.0, 1.0, 1.0)),
]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("slices", [False, True])
def test_the_loss_is_that_of_each_row_s_own_tokens(way: str, kind: str, slices: bool) -> None:
    """Against each row alone, its logits taken from behind whatever stands before it."""
    model, made = put(MODELS[kind](), **WAYS[way], full=True, tokens=3)
    task, virtual = TASKS["causal_lm"], METHODS[made.name].virtual_tokens(made)
    assert virtual == (0 if made.name == "prefix_tuning" else 3)
    wanted = 0.0
    for row in ROWS:
        ids = torch.tensor([row.ids])
        alone = logits(model, input_ids=ids, attention_mask=torch.ones_like(ids))
        assert alone.shape[1] == virtual + len(row)
        shares = log_softmax(alone[0, virtual:].double(), dim=-1)
        wanted -= sum(
            weight * float(shares[at - 1, token])
            for at, (token, weight) in enumerate(zip(row.ids, row.weights, strict=True))
            if at
        )
    base = model.get_base_model()
    plain = plain_head(base)
    assert plain is not None
    for head in (None, Head(plain)):
        batch = tensors(task.collate(ROWS, Layout(0, slices, head=head, virtual=virtual)))
        with torch.no_grad():
            loss = OBJECTIVES[task.objective].step(model, batch)
            measured = task.metrics(model, batch)
        assert float(loss.sum) == pytest.approx(wanted, rel=1e-5)
        assert loss.count == 5.5
        assert sum(measured["loss"]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("way", WAYS)
def test_text_is_made_alike_with_a_cache_asked_for_and_without(way: str, kind: str, tmp_path: Path) -> None:
    trained, made = put(MODELS[kind](), **WAYS[way], full=True, tokens=3)
    METHODS[made.name].save(trained, made, BaseName("base", None), tmp_path)
    loaded = METHODS[made.name].load(MODELS[kind]().eval(), made, tmp_path)
    said = []
    for model in (trained, loaded):
        ids = IDS[:1]
        for _ in range(5):
            ids = torch.cat(
                [ids, logits(model, input_ids=ids, attention_mask=torch.ones_like(ids))[:, -1:].argmax(-1)], 1
            )
        said.append(ids)
        for cache in (True, False, None):
            asked = {} if cache is None else {"use_cache": cache}
            found = model.generate(
                input_ids=IDS[:1], attention_mask=torch.ones(1, 5, dtype=torch.long), max_new_tokens=5,
                do_sample=False, eos_token_id=None, pad_token_id=0, **asked,
            )  # fmt: skip
            assert torch.equal(found, ids)
    assert torch.equal(*said)


# Whole runs.


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"name": "p_tuning", "tokens": 8, "network": "lstm", "hidden": 16, "dropout": 0.2},
        {"name": "prefix_tuning", "tokens": 8, "hidden": 16},
        {"name": "prefix_tuning", "tokens": 16, "init": "text", "text": TEXT},
        {"name": "prompt_tuning", "tokens": 16, "init": "text", "text": TEXT},
    ],
    ids=["lstm", "prefix_network", "prefix_text", "prompt_text"],
)
def test_it_learns_is_verified_and_is_the_same_from_run_to_run(
    settings: dict[str, Any], tmp_path: Path, tiny_model: Path
) -> None:
    from peft import AutoPeftModelForCausalLM
    from safetensors.torch import load_file

    held_out = {"eval": {"path": "train.jsonl"}}
    runs = [
        jobs.train(
            tmp_path,
            tiny_model,
            name,
            method=settings,
            data=held_out,
            train={"epochs": 8, "learning_rate": 2e-2, "seed": seed},
        )
        for name, seed in (("one", 0), ("two", 0), ("three", 1))
    ]
    (one, events), (two, _), (three, _) = runs
    seen = jobs.losses(events)
    assert sum(seen[-3:]) < 0.95 * sum(seen[:3])  # an epoch is three steps
    facts = jobs.manifest(one)
    assert facts["verified"]["reload"]["max_difference"] == 0.0
    weights = [
        load_file(run / "adapter" / "adapter_model.safetensors")["prompt_embeddings"] for run in (one, two, three)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    loaded = peftctl.load(one)
    assert loaded.held_out()(loaded.model) == pytest.approx(facts["metrics"], rel=1e-5)
    plain = AutoPeftModelForCausalLM.from_pretrained(one / "adapter").eval()
    assert torch.equal(logits(plain, **INPUTS), logits(loaded.model, **INPUTS))
