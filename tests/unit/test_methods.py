"""Every method against its formula, on models of several kinds."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from peftctl.data.collate import Collator
from peftctl.errors import UsageError
from peftctl.methods import METHODS, DataFacts, MethodSettings
from peftctl.methods.lokr import factors
from peftctl.model import attach, load, targets
from peftctl.model.fast import FastPaths
from peftctl.model.profile import profile
from peftctl.objectives import OBJECTIVES
from peftctl.recipe.schema import FastSettings
from peftctl.tables import table
from peftctl.tasks import TASKS, Layout
from peftctl.text.tokens import Encoded
from tests import tiny

FACTS = DataFacts(rows=8, tokens=100, supervised_tokens=50, longest=20, steps=20)
IDS = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
KINDS = {
    "llama": tiny.llama,
    "qwen3": tiny.qwen3,
    "gemma2": tiny.gemma2,
    "gpt2": lambda: tiny.gpt2(dropout=0.0),
}
OFF = {"packed": False, "loss": False, "lora": False, "norm": False, "compile": False}
IN_LAYERS = ("lora", "ia3", "adalora", "loha", "lokr")
BEFORE_ROWS = ("prompt_tuning", "p_tuning")
# Those that PEFT adds to a model and that need no more than it; the others have tests of their own.
ADDED = (*IN_LAYERS, *BEFORE_ROWS, "prefix_tuning")
# Sums of up to 128 products in float32.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
SEEN = table("capabilities")["methods"]
GPT2_MODULES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def pairs(methods: Any) -> list[tuple[str, str]]:
    return [(method, kind) for method in methods for kind in KINDS if SEEN[method]["families"][kind] == "yes"]


def put(model: Any, name: str, **settings: Any) -> tuple[Any, MethodSettings, Any]:
    """The PEFT model in eval mode, the settings resolved, and the anatomy."""
    method = METHODS[name]
    made = method.resolve(method.settings(name=name, **settings))
    model = model.eval().requires_grad_(False)
    wanted = method.choose(model) if made.wanted is None else made.wanted
    anatomy = attach.anatomy(model, targets.resolve(model, wanted))
    torch.manual_seed(0)
    return attach.attach(model, method, made, anatomy, "CAUSAL_LM", FACTS).eval(), made, anatomy


def layers(model: Any, anatomy: Any) -> list[tuple[str, Any]]:
    return [(name, model.get_base_model().get_submodule(name)) for name in anatomy.targets]


def fill(model: Any) -> None:
    """Random numbers in place of everything that is trained, so that nothing is hidden by a zero."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)


def test_the_table_has_each_method_and_each_kind() -> None:
    assert SEEN.keys() == METHODS.keys()
    assert all(KINDS.keys() <= able["families"].keys() for able in SEEN.values())
    assert len(pairs(ADDED)) == 8 * 4 - 2


# The update of a weight, in float64, from the tensors that are trained: [outputs, inputs].


def adalora(layer: Any, made: Any) -> Any:
    p, e, q = (getattr(layer, name)["default"].detach().double() for name in ("lora_B", "lora_E", "lora_A"))
    assert (p.shape[1], e.shape, q.shape[0]) == (made.initial_rank, (made.initial_rank, 1), made.initial_rank)
    return made.alpha / made.initial_rank * p @ torch.diag(e[:, 0]) @ q


def loha(layer: Any, made: Any) -> Any:
    a1, b1, a2, b2 = (
        getattr(layer, f"hada_{name}")["default"].detach().double() for name in ("w1_a", "w1_b", "w2_a", "w2_b")
    )
    assert (a1.shape[1], a2.shape[1]) == (made.rank, made.rank)
    return made.alpha / made.rank * (a1 @ b1) * (a2 @ b2)


def lokr(layer: Any, made: Any) -> Any:
    small = layer.lokr_w1["default"].detach().double()
    if "default" in layer.lokr_w2:
        large = layer.lokr_w2["default"].detach().double()
    else:
        a, b = layer.lokr_w2_a["default"].detach().double(), layer.lokr_w2_b["default"].detach().double()
        assert (a.shape[1], b.shape[0]) == (made.rank, made.rank)
        large = a @ b
    return made.alpha / made.rank * torch.from_numpy(np.kron(small.numpy(), large.numpy()))


UPDATES = {"adalora": adalora, "loha": loha, "lokr": lokr}
UPDATED = {
    "adalora": {"rank": 3, "initial_rank": 5, "alpha": 7.0},
    "loha": {"rank": 3, "alpha": 7.0},
    "lokr": {"rank": 2, "alpha": 7.0},
}


@pytest.mark.parametrize(("method", "kind"), pairs(UPDATES))
def test_a_weight_is_updated_as_the_formula_says(method: str, kind: str) -> None:
    model, made, anatomy = put(KINDS[kind](), method, **UPDATED[method])
    fill(model)
    for name, layer in layers(model, anatomy):
        inputs, outputs = anatomy.targets[name]
        update = UPDATES[method](layer, made)
        assert update.shape == (outputs, inputs)
        x = torch.randn(4, inputs, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            base = layer.base_layer(x).double()
            wanted = base + x.double() @ update.T
            assert float((wanted - base).abs().max()) > 0.1  # an update that does nothing would prove nothing
            torch.testing.assert_close(layer(x).double(), wanted, **CLOSE)


def test_lokr_s_larger_factor_is_whole_from_half_its_side_on() -> None:
    # 32 to 32 is 4 x 8 on either side; half of 8 is 4.
    for rank, low_rank in ((3, True), (4, False)):
        model, _, anatomy = put(tiny.llama(), "lokr", rank=rank, targets="q_proj")
        fill(model)
        for _, layer in layers(model, anatomy):
            assert ("default" in layer.lokr_w2_a) is low_rank
            assert ("default" in layer.lokr_w2) is not low_rank
            assert layer.lokr_w1["default"].shape == (4, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_ia3_scales_keys_and_values_after_and_feed_forward_inputs_before_the_layer(kind: str) -> None:
    model, _, anatomy = put(KINDS[kind](), "ia3")
    fill(model)
    before = []
    for name, layer in layers(model, anatomy):
        inputs, outputs = anatomy.targets[name]
        scale = layer.ia3_l["default"].detach().flatten()
        x = torch.randn(4, inputs, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            found = layer(x).double()
            base = layer.base_layer(x).double()
            if scale.numel() == inputs and name.endswith(("down_proj", "mlp.c_proj")):
                before.append(name)
                weight, bias = layer.base_layer.weight.double(), getattr(layer.base_layer, "bias", None)
                weight = weight.T if kind == "gpt2" else weight
                wanted = (x.double() * scale.double()) @ weight.T + (0.0 if bias is None else bias.double())
            else:
                assert scale.numel() == outputs
                wanted = base * scale.double()
            torch.testing.assert_close(found, wanted, **CLOSE)
            assert float((found - base).abs().max()) > 0.1
    assert len(before) == 2


def test_ia3_goes_where_the_paper_has_it() -> None:
    _, _, anatomy = put(tiny.llama(), "ia3")
    where = {name.split(".", 3)[-1] for name in anatomy.targets}
    assert where == {"self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"}
    assert len(anatomy.targets) == 2 * 3
    _, _, anatomy = put(tiny.gpt2(), "ia3")
    assert {name.split(".", 3)[-1] for name in anatomy.targets} == {"attn.c_attn", "mlp.c_proj"}


def test_ia3_on_the_shapes_of_a_real_model() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, head_dim=64, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
        model, _, anatomy = put(model, "ia3")
    shapes = {name: tuple(layer.ia3_l["default"].shape) for name, layer in layers(model, anatomy)}
    assert len(shapes) == 16 * 3
    for name, shape in shapes.items():
        assert shape == ((1, 8192) if name.endswith("down_proj") else (512, 1)), name
    assert attach.trainable(model) == 16 * (512 + 512 + 8192) == 147_456


def test_ia3_scales_inputs_where_feedforward_says_and_refuses_what_is_no_target() -> None:
    model, _, anatomy = put(tiny.llama(), "ia3", targets=("v_proj", "down_proj"), feedforward=("v_proj",))
    sizes = {name.rsplit(".", 1)[-1]: layer.ia3_l["default"].numel() for name, layer in layers(model, anatomy)}
    assert sizes == {"v_proj": 32, "down_proj": 32}  # v_proj is 32 to 16, down_proj 64 to 32
    with pytest.raises(UsageError, match=r"method\.feedforward: 'q_proj' is none of the targets"):
        put(tiny.llama(), "ia3", targets=("v_proj",), feedforward=("q_proj",))


def test_ia3_asks_where_a_model_calls_its_layers_something_else() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(UsageError, match="ia3 does not know the keys, values and feed-forward layers of Sequential"):
        METHODS["ia3"].choose(model)


# Starts.

FROM_THE_BASE = ("lora", "ia3", "adalora", "loha", "lokr")


@pytest.mark.parametrize(("method", "kind"), pairs(FROM_THE_BASE))
def test_training_starts_from_the_base_model_s_own_outputs(method: str, kind: str) -> None:
    model = KINDS[kind]().eval()
    with torch.no_grad():
        wanted = model(IDS).logits
        wrapped, _, _ = put(model, method)
        assert torch.equal(wrapped(IDS).logits, wanted)
        fill(wrapped)
        assert not torch.allclose(wrapped(IDS).logits, wanted, atol=1e-2)


def test_a_vocabulary_prompt_is_made_of_tokens_and_a_text_prompt_of_the_text_s(tmp_path: Any) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny.save(tmp_path / "m"))
    words = model.get_input_embeddings().weight.clone()
    wrapped, _, _ = put(model, "prompt_tuning", tokens=6)
    vectors = wrapped.prompt_encoder["default"].embedding.weight
    assert all((vector == words).all(dim=1).any() for vector in vectors)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    wrapped, _, _ = put(model, "prompt_tuning", tokens=6, init="random")
    assert not any((vector == words).all(dim=1).any() for vector in wrapped.prompt_encoder["default"].embedding.weight)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    wrapped, _, _ = put(model, "prompt_tuning", tokens=6, init="text", text="odd?")
    ids = tiny.tokenizer()("odd?")["input_ids"]
    assert len(ids) == 4
    assert torch.equal(wrapped.prompt_encoder["default"].embedding.weight, words[[*ids, *ids[:2]]])


@pytest.mark.parametrize("settings", [{"text": "odd?"}, {"init": "text"}, {"init": "random", "text": "odd?"}])
def test_a_text_goes_with_init_text_alone(settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"method\.text: is what `init: text` starts from, and needed there alone"):
        put(tiny.llama(), "prompt_tuning", **settings)


def test_a_prefix_starts_at_zero_unless_it_is_to_be_random() -> None:
    model, _, _ = put(tiny.llama(), "prefix_tuning", tokens=3)
    assert not model.prompt_encoder["default"].embedding.weight.any()
    model, _, _ = put(tiny.llama(), "prefix_tuning", tokens=3, init="random")
    assert float(model.prompt_encoder["default"].embedding.weight.detach().std()) > 0.5


# Vectors before the text.


def network(encoder: Any) -> Any:
    """The p-tuning network written out, in float64: three layers with ReLU between."""
    x = encoder.embedding.weight.detach().double()
    first, second, third = (layer for layer in encoder.mlp_head if isinstance(layer, torch.nn.Linear))
    for layer in (first, second):
        x = (x @ layer.weight.detach().double().T + layer.bias.detach().double()).clamp(min=0)
    return x @ third.weight.detach().double().T + third.bias.detach().double()


@pytest.mark.parametrize(("method", "kind"), pairs(BEFORE_ROWS))
def test_the_vectors_stand_before_the_embeddings_of_the_text(method: str, kind: str) -> None:
    model, made, _ = put(KINDS[kind](), method, tokens=3)
    fill(model)
    encoder = model.prompt_encoder["default"]
    made_by = encoder.embedding.weight.detach().double() if method == "prompt_tuning" else network(encoder)
    assert made_by.shape == (3, 32)
    base = model.get_base_model()
    with torch.no_grad():
        words = base.get_input_embeddings()(IDS)
        whole = torch.cat([made_by.float().expand(2, 3, 32), words], dim=1)
        wanted = base(inputs_embeds=whole).logits
        mask = torch.ones_like(IDS)
        found = model(input_ids=IDS, attention_mask=mask).logits
    assert METHODS[method].virtual_tokens(made) == METHODS[method].positions(made) == 3
    assert found.shape == (2, 8, 264)
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize(("method", "kind"), pairs(["prefix_tuning"]))
def test_keys_and_values_stand_before_the_text_s_in_every_layer(method: str, kind: str) -> None:
    from transformers import DynamicCache

    model, made, anatomy = put(KINDS[kind](), method, tokens=3)
    fill(model)
    base = model.get_base_model()
    heads = 4 if kind == "gpt2" else 2
    assert anatomy.key_width == heads * 8
    # [tokens, layers * 2 * key width]: for each layer keys, then values.
    vectors = model.prompt_encoder["default"].embedding.weight.detach().view(3, 2, 2, heads, 8).permute(1, 2, 3, 0, 4)
    cache = DynamicCache(config=base.config)
    for layer, (keys, values) in enumerate(vectors):
        cache.update(keys.expand(2, heads, 3, 8), values.expand(2, heads, 3, 8), layer)
    with torch.no_grad():
        wanted = base(IDS, past_key_values=cache, attention_mask=torch.ones(2, 8), use_cache=True).logits
        found = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False).logits
        plain = base(IDS).logits
    assert METHODS[method].virtual_tokens(made) == 0
    assert METHODS[method].positions(made) == 3
    assert found.shape == (2, 5, 264)
    torch.testing.assert_close(found, wanted, **CLOSE)
    assert float((found - plain).abs().max()) > 1e-2


def test_a_prefix_s_text_attends_to_it_by_the_formula() -> None:
    """One layer's attention written out: softmax over [K_prefix, K(x)], then [V_prefix, V(x)]."""
    model, _, _ = put(tiny.gpt2(dropout=0.0), "prefix_tuning", tokens=3)
    fill(model)
    base = model.get_base_model()
    block = base.transformer.h[0]
    heard: list[Any] = []
    hook = block.attn.register_forward_hook(lambda *_: heard.append(_[2][0]))
    before: list[Any] = []
    hook_in = block.attn.register_forward_pre_hook(
        lambda _, args, kwargs: before.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False)
        hook.remove()
        hook_in.remove()
        # The text's positions come after the prefix's.
        embedded = base.transformer.wte(IDS) + base.transformer.wpe(torch.arange(3, 8))
        torch.testing.assert_close(before[0], block.ln_1(embedded), **CLOSE)
        q, k, v = (part.view(2, 5, 4, 8).transpose(1, 2).double() for part in block.attn.c_attn(before[0]).split(32, 2))
        prefix = model.prompt_encoder["default"].embedding.weight.view(3, 2, 2, 4, 8)[:, 0].double()
        keys = torch.cat([prefix[:, 0].transpose(0, 1).expand(2, 4, 3, 8), k], dim=2)
        values = torch.cat([prefix[:, 1].transpose(0, 1).expand(2, 4, 3, 8), v], dim=2)
        scores = q @ keys.transpose(-1, -2) / 8**0.5
        hidden = torch.ones(5, 8, dtype=torch.bool).triu(4)
        wanted = (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values).transpose(1, 2).reshape(2, 5, 32)
        out = block.attn.c_proj(wanted.float())
    torch.testing.assert_close(heard[0], out, **CLOSE)


# How much is trained, in what, and where.

SIZES: list[tuple[str, dict[str, Any]]] = [
    *(("lora", {"rank": rank}) for rank in (1, 5, 32)),
    ("ia3", {}),
    ("ia3", {"targets": ("q_proj", "up_proj"), "feedforward": ("up_proj",)}),
    *(("adalora", {"rank": rank, "initial_rank": initial}) for rank, initial in ((1, 1), (3, 7), (8, None))),
    *(("loha", {"rank": rank}) for rank in (1, 5, 16)),
    *(("lokr", {"rank": rank, "factor": factor}) for rank in (1, 2, 5, 32) for factor in (-1, 2, 3, 4, 16)),
    *(("prompt_tuning", {"tokens": tokens}) for tokens in (1, 7)),
    *(("p_tuning", {"tokens": tokens, "hidden": hidden}) for tokens, hidden in ((1, 128), (7, 5))),
    *(("prefix_tuning", {"tokens": tokens}) for tokens in (1, 7)),
]


def written_out(method: str, made: Any, shapes: Any, layers_of: int, width: int, key_width: int) -> int:
    """The count, from the method's definition and not from its code."""
    total = 0
    for name, (inputs, outputs) in shapes.items():
        if method == "lora":
            total += made.rank * inputs + outputs * made.rank
        elif method == "adalora":
            total += made.initial_rank * inputs + made.initial_rank + outputs * made.initial_rank
        elif method == "loha":
            total += 2 * (outputs * made.rank + made.rank * inputs)
        elif method == "ia3":
            last = name.rsplit(".", 1)[-1]
            fed = last in made.feedforward if made.feedforward else name.endswith(("down_proj", "mlp.c_proj"))
            total += inputs if fed else outputs
        else:
            from peft.tuners.lokr.layer import factorization

            (i1, i2), (o1, o2) = factorization(inputs, made.factor), factorization(outputs, made.factor)
            total += o1 * i1 + (o2 * i2 if made.rank >= max(o2, i2) / 2 else made.rank * (o2 + i2))
    if method in ("prompt_tuning", "p_tuning"):
        total += made.tokens * width
    if method == "p_tuning":
        hidden = made.hidden
        total += width * hidden + hidden + hidden * hidden + hidden + hidden * width + width
    if method == "prefix_tuning":
        total += made.tokens * layers_of * 2 * key_width
    return total


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize(("method", "settings"), SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_as_many_numbers_are_trained_as_the_formula_and_peft_say(
    kind: str, method: str, settings: dict[str, Any]
) -> None:
    if SEEN[method]["families"][kind] != "yes" or ("targets" in settings and kind == "gpt2"):
        with pytest.raises(UsageError):
            put(KINDS[kind](), method, **settings)
        return
    model, made, anatomy = put(KINDS[kind](), method, **settings)
    shapes = {name: (layer.in_features, layer.out_features) for name, layer in layers(model, anatomy)}
    assert shapes == anatomy.targets
    assert bool(shapes) is (method in IN_LAYERS)
    key_width = 32 if kind == "gpt2" else 16
    wanted = written_out(method, made, shapes, 2, 32, key_width)
    assert METHODS[method].parameters(made, anatomy) == wanted
    assert model.get_nb_trainable_parameters()[0] == wanted
    assert attach.trainable(model) == wanted


@pytest.mark.parametrize("factor", [-1, 2, 3, 4, 8, 16])
def test_lokr_factors_sizes_as_peft_does(factor: int) -> None:
    from peft.tuners.lokr.layer import factorization

    assert [factors(size, factor) for size in range(1, 201)] == [factorization(size, factor) for size in range(1, 201)]


@pytest.mark.parametrize(("method", "kind"), pairs(ADDED))
def test_what_is_trained_is_float32_on_a_bfloat16_base(method: str, kind: str) -> None:
    base = KINDS[kind]().to(torch.bfloat16)
    frozen = {id(parameter) for parameter in base.parameters()}
    model, _, _ = put(base, method)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert not {id(p) for p in trained.values()} & frozen
    assert {p.dtype for p in model.get_base_model().parameters() if id(p) in frozen} == {torch.bfloat16}
    logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS), use_cache=False).logits
    assert logits.dtype == torch.bfloat16
    logits.float().square().sum().backward()
    assert {p.grad.dtype for p in trained.values() if p.grad is not None} == {torch.float32}


@pytest.mark.parametrize(("method", "kind"), pairs(["lora", "adalora", "loha", "lokr"]))
def test_all_linear_is_every_layer_but_the_head(method: str, kind: str) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    model, _, _ = put(KINDS[kind](), method)
    base = model.get_base_model()
    found = [name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)]
    modules = GPT2_MODULES if kind == "gpt2" else MODULES
    assert len(found) == 2 * len(modules)
    assert {name.endswith(modules) for name in found} == {True}
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(any(f".{target}." in name for target in found) for name in trained)


@pytest.mark.parametrize("method", ["ia3", "adalora", "loha", "lokr"])
def test_targets_get_it_and_nothing_else_does(method: str) -> None:
    from peft.tuners.tuners_utils import BaseTunerLayer

    model, _, _ = put(tiny.llama(), method, targets=("model.layers.1.*.v_proj", "up_proj"))
    base = model.get_base_model()
    assert [name for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)] == [
        "model.layers.0.mlp.up_proj",
        "model.layers.1.self_attn.v_proj",
        "model.layers.1.mlp.up_proj",
    ]


@pytest.mark.parametrize("method", ["loha", "lokr"])
def test_a_layer_that_peft_cannot_have_is_refused_with_what_can(method: str) -> None:
    with pytest.raises(UsageError) as refused:
        put(tiny.gpt2(), method)
    assert refused.value.message.startswith(f"method: {method} cannot go into GPT2LMHeadModel: Target module of type")
    assert str(refused.value.hint) == "seen to work on gpt2: lora, ia3, adalora, prompt_tuning, p_tuning"


@pytest.mark.parametrize("method", ADDED)
def test_only_lora_s_updates_are_said_to_be_low_rank_and_nothing_else(method: str) -> None:
    settings = {"targets": ("q_proj",)} if method in IN_LAYERS else {}
    model, _, _ = put(tiny.llama(), method, **settings)
    layer = model.get_base_model().model.layers[0].self_attn.q_proj
    assert (METHODS[method].low_rank(layer) is not None) is (method == "lora")


@pytest.mark.parametrize("method", ADDED)
def test_the_seed_fixes_the_start(method: str) -> None:
    starts = []
    for _ in range(2):
        model, _, _ = put(tiny.llama(), method)
        starts.append(torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]))
    assert torch.equal(*starts)


# AdaLoRA's penalty and its limits.


def test_adalora_s_penalty_and_its_gradient_are_peft_s_own() -> None:
    model, _, _ = put(tiny.llama(), "adalora", rank=3, orthogonal=0.7)
    fill(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    plain = torch.nn.functional.cross_entropy(model(IDS).logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    wanted = torch.autograd.grad(model(IDS, labels=IDS).loss - plain, trained)  # peft adds its regulariser to the loss
    penalty = METHODS["adalora"].penalty
    assert penalty is not None
    found_penalty = penalty(model)
    found = torch.autograd.grad(found_penalty, trained, allow_unused=True)
    assert float(found_penalty.detach()) == pytest.approx(
        float((model(IDS, labels=IDS).loss - plain).detach()), rel=1e-4
    )
    assert float(found_penalty.detach()) > 0.5
    for parameter, grad, other in zip(trained, found, wanted, strict=True):
        torch.testing.assert_close(torch.zeros_like(parameter) if grad is None else grad, other, rtol=1e-3, atol=1e-4)


def test_no_other_method_has_a_penalty_or_follows_the_update() -> None:
    assert [name for name, method in METHODS.items() if method.penalty] == ["adalora"]
    assert [name for name, method in METHODS.items() if method.after_update] == ["adalora", "adamss"]


def test_adalora_s_defaults_follow_from_the_rank() -> None:
    method = METHODS["adalora"]
    made: Any = method.resolve(method.settings(name="adalora", rank=5))
    assert (made.initial_rank, made.alpha) == (8, 16.0)
    made = method.resolve(method.settings(name="adalora", rank=5, initial_rank=6, alpha=3.0))
    assert (made.initial_rank, made.alpha) == (6, 3.0)


def test_adalora_does_not_start_below_where_it_ends() -> None:
    with pytest.raises(UsageError) as refused:
        put(tiny.llama(), "adalora", rank=4, initial_rank=3)
    assert refused.value.message == (
        "method.initial_rank: below the rank that is to be left (found 3); allowed: at least 4"
    )


@pytest.mark.parametrize(("start", "settle"), [(0.5, 0.5), (0.95, 0.0), (0.2, 0.9)])
def test_adalora_s_ranks_need_a_step_to_fall(start: float, settle: float) -> None:
    with pytest.raises(UsageError) as refused:
        put(tiny.llama(), "adalora", rank=4, start=start, settle=settle)
    assert refused.value.message == (
        "method.start, method.settle: leave no step for ranks to fall in a run of 20 steps"
    )


# In batches.

TASK, OBJECTIVE = TASKS["causal_lm"], OBJECTIVES["cross_entropy"]
ROWS = [
    Encoded(tuple(np.random.default_rng(index).integers(0, 256, length).tolist()), (0.0, 0.0, *(1.0,) * (length - 2)))
    for index, length in enumerate((9, 4, 13, 3))
]


def outcome(model: Any, method: str, made: Any, paths: FastSettings, groups: list[list[Encoded]]) -> tuple[Any, Any]:
    """The summed loss of all rows, and the gradient of everything that is trained, as one vector."""
    virtual = METHODS[method].virtual_tokens(made)
    slices = paths.loss and "logits_to_keep" in inspect.signature(model.get_base_model().forward).parameters
    fast = FastPaths(paths, profile(model, TASK, slices, torch.float32, virtual), METHODS[method])
    collate = Collator(TASK, None, fast.layout(Layout(0)), 10_000, torch.device("cpu"))
    total = 0.0
    with fast.on(model) as put_in:
        model.train()
        for group in groups:
            part = OBJECTIVE.step(model, collate(group)).sum
            part.backward()
            total += float(part.detach())
    assert not (put_in["packed"] and virtual)
    gradient = torch.cat([p.grad.double().flatten() for p in model.parameters() if p.requires_grad])
    model.zero_grad()
    return total, gradient


def by_hand(model: Any, virtual: int) -> float:
    """The same loss, row by row, from the logits of the peft model."""
    total = 0.0
    with torch.no_grad():
        for row in ROWS:
            ids = torch.tensor([row.ids])
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, virtual:]
            losses = torch.nn.functional.cross_entropy(logits[:-1].double(), ids[0, 1:], reduction="none")
            total += float((losses * torch.tensor(row.weights[1:])).sum())
    return total


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize(("method", "kind"), pairs(ADDED))
def test_rows_padded_together_give_the_loss_and_gradients_of_rows_alone(method: str, kind: str) -> None:
    model, made, _ = put(KINDS[kind](), method, **({"tokens": 3} if method not in IN_LAYERS else {}))
    fill(model)
    alone_loss, alone = outcome(model, method, made, FastSettings(**OFF), [[row] for row in ROWS])
    assert alone_loss == pytest.approx(by_hand(model, METHODS[method].virtual_tokens(made)), rel=1e-5)
    assert float(alone.norm()) > 0.01
    for paths in (FastSettings(**OFF), FastSettings(compile=False)):
        loss, gradient = outcome(model, method, made, paths, [ROWS])
        assert loss == pytest.approx(alone_loss, rel=1e-5)
        assert float((gradient - alone).norm()) < 2e-5 * float(alone.norm())


# Positions.


def test_rows_leave_room_for_what_the_method_puts_before_them() -> None:
    config, tokenizer = tiny.gpt2().config, tiny.tokenizer()
    assert load.longest_row(config, tokenizer, None) == 512
    assert load.longest_row(config, tokenizer, None, taken=20) == 492
    assert load.longest_row(config, tokenizer, 492, taken=20) == 492
    with pytest.raises(UsageError) as refused:
        load.longest_row(config, tokenizer, 493, taken=20)
    assert refused.value.message == (
        "data.max_length: more than the model can attend to beside the method's 20 (found 493); allowed: at most 492"
    )
    with pytest.raises(UsageError) as refused:
        load.longest_row(config, tokenizer, None, taken=512)
    assert refused.value.message == "method.tokens: leave no position for rows (found 512); the model has 512"


def test_positions_are_taken_by_what_stands_before_rows_alone() -> None:
    taken = {name: method.positions(method.settings(name=name)) for name, method in METHODS.items() if name in ADDED}
    assert taken == dict.fromkeys(IN_LAYERS, 0) | {"prompt_tuning": 20, "p_tuning": 20, "prefix_tuning": 20}
