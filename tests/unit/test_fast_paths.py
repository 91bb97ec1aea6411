"""Each fast path gives what the plain path gives: losses and gradients, on models of several kinds."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from peftctl.data.collate import Collator
from peftctl.fast import attention, gate, install, linear, loss, norm
from peftctl.methods import METHODS, DataFacts, LowRank
from peftctl.model import attach, targets
from peftctl.model.fast import FastPaths
from peftctl.model.profile import profile
from peftctl.objectives import OBJECTIVES
from peftctl.recipe.schema import FastSettings
from peftctl.tasks import TASKS, Layout
from peftctl.text.tokens import Encoded
from tests import tiny

TASK, METHOD, OBJECTIVE = TASKS["causal_lm"], METHODS["lora"], OBJECTIVES["cross_entropy"]
MODELS = {
    "llama": tiny.llama,
    "qwen2": tiny.qwen2,
    "qwen3": tiny.qwen3,
    "gemma2": tiny.gemma2,
    "mistral": lambda: tiny.mistral(window=64),
    "gpt2": lambda: tiny.gpt2(dropout=0.0),
}
OFF = FastSettings(packed=False, loss=False, lora=False, norm=False)
PATHS = ("packed", "loss", "lora", "norm")
EPS = torch.finfo(torch.float32).eps


def rows() -> list[Encoded]:
    made = []
    for index, length in enumerate((150, 9, 33, 2, 61, 130)):
        generator = torch.Generator().manual_seed(index)
        ids = torch.randint(0, 264, (length,), generator=generator).tolist()
        weights = torch.randint(0, 3, (length,), generator=generator).tolist()
        made.append(Encoded(tuple(ids), (*(float(weight) for weight in weights[:-1]), 1.0)))
    return made


def adapted(kind: str, dtype: torch.dtype, *, checkpointing: bool = False) -> Any:
    """A peft model with LoRA on every linear layer, B filled so that every tensor gets a gradient."""
    base = MODELS[kind]().to(dtype).requires_grad_(False)
    if checkpointing:
        base.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    settings = METHOD.resolve(METHOD.settings(name="lora", rank=4))
    anatomy = attach.anatomy(base, targets.resolve(base, ["all-linear"]))
    torch.manual_seed(1)
    model = attach.attach(base, METHOD, settings, anatomy, "CAUSAL_LM", DataFacts(6, 400, 200, 150, 1))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    return model


def outcome(model: Any, settings: FastSettings, tokens: int = 200) -> tuple[float, torch.Tensor, dict[str, Any]]:
    """The loss of a step, the gradient of everything trained as one vector, and what was put in."""
    longest = max(map(len, rows()))
    fast = FastPaths(settings, profile(model, TASK, slices_logits=True, dtype=model.dtype, longest=longest), METHOD)
    collate = Collator(TASK, None, fast.layout(Layout(0)), tokens, torch.device("cpu"))
    total = 0.0
    with fast.on(model) as put_in:
        model.train()
        for group in collate.groups(rows()):
            part = OBJECTIVE.step(model, collate([rows()[index] for index in group])).sum
            part.backward()
            total += float(part.detach())
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradient = torch.cat([parameter.grad.double().flatten() for parameter in trained])
    model.zero_grad()
    return total, gradient, put_in


def only(*paths: str) -> FastSettings:
    return OFF.model_copy(update=dict.fromkeys(paths, True))


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("paths", [*((path,) for path in PATHS), PATHS], ids="+".join)
@pytest.mark.parametrize("kind", MODELS)
def test_in_float32_a_fast_path_changes_rounding_alone(kind: str, paths: tuple[str, ...], checkpointing: bool) -> None:
    model = adapted(kind, torch.float32, checkpointing=checkpointing)
    wanted_loss, wanted, _ = outcome(model, OFF)
    found_loss, found, _ = outcome(model, only(*paths))
    # The same sums in another order: some hundred roundings, one after another, through two layers.
    assert found_loss == pytest.approx(wanted_loss, rel=100 * EPS)
    assert apart(found, wanted) < 100 * EPS
    # The scale of things: a gradient of other rows is nowhere near.
    assert apart(outcome(model, only(*paths), tokens=10)[1], wanted) < 100 * EPS


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize("paths", [*((path,) for path in PATHS), PATHS], ids="+".join)
@pytest.mark.parametrize("kind", MODELS)
def test_in_bfloat16_a_fast_path_is_no_further_from_float32_than_the_plain_one(
    kind: str, paths: tuple[str, ...]
) -> None:
    _, exact, _ = outcome(adapted(kind, torch.float32), OFF)
    # The float32 model with the weights that bfloat16 can hold.
    rounded = adapted(kind, torch.bfloat16)
    reference = adapted(kind, torch.float32)
    reference.load_state_dict({name: value.float() for name, value in rounded.state_dict().items()})
    _, exact, _ = outcome(reference, OFF)
    _, plain, _ = outcome(rounded, OFF)
    _, found, _ = outcome(rounded, only(*paths))
    assert apart(found, exact) < 1.25 * apart(plain, exact)


@pytest.mark.parametrize(
    ("kind", "packed", "head", "replaced"),
    [
        ("llama", True, True, {"norm": 5, "attention": 2, "mlp": 2}),
        ("qwen2", True, True, {"norm": 5, "attention": 2, "mlp": 2}),
        # Its norms of queries and keys are within the attention module, which is left; its projections are not.
        ("qwen3", True, True, {"norm": 9, "mlp": 2, "linear": 8}),
        ("gemma2", False, False, {"norm": 9, "mlp": 2, "linear": 8}),
        ("gpt2", True, True, {}),
    ],
)
def test_what_can_be_trusted_is_measured_on_the_model(
    kind: str, packed: bool, head: bool, replaced: dict[str, int]
) -> None:
    _, _, put_in = outcome(adapted(kind, torch.float32), only(*PATHS))
    assert put_in["packed"] is packed
    assert put_in["loss"] is head
    assert put_in["replaced"] == replaced
    assert ("softcap" in put_in["not_packed"]) is (kind == "gemma2")


def test_what_was_put_in_is_taken_out_again() -> None:
    model = adapted("llama", torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    implementation = model.config._attn_implementation
    outcome(model, only(*PATHS))
    assert model.get_base_model().config._attn_implementation == implementation
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        assert torch.equal(after[name], value)
        assert after[name].is_contiguous(), name


class OptionalRMSNorm(torch.nn.Module):
    """An RMSNorm that is plain where it is given no gate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.rand(32), requires_grad=False)
        self.eps = 1e-6

    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        normed = x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight
        return normed if gate is None else normed * torch.nn.functional.silu(gate)


def test_a_gated_norm_is_left_alone() -> None:
    """One whose gate is needed, and one that would do without and is given one all the same."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.qwen3_5.modeling_qwen3_5 import Qwen3_5RMSNormGated

    norms = torch.nn.ModuleList([Qwen3_5RMSNormGated(32), OptionalRMSNorm(), LlamaRMSNorm(32)]).requires_grad_(False)
    put_in = install.install(norms, lambda _: None, norm=True, lora=False, packed=False, compile=False)
    assert put_in.counts == {"norm": 1}
    assert ["forward" in vars(module) for module in norms] == [False, False, True]
    x, gate = (torch.randn(3, 32, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert norms[0](x, gate).shape == norms[1](x, gate).shape == x.shape


def test_a_model_whose_attention_drops_is_not_packed() -> None:
    model = tiny.gpt2(dropout=0.1).requires_grad_(False)
    settings = METHOD.resolve(METHOD.settings(name="lora", rank=4))
    anatomy = attach.anatomy(model, targets.resolve(model, ["all-linear"]))
    model = attach.attach(model, METHOD, settings, anatomy, "CAUSAL_LM", DataFacts(6, 400, 200, 150, 1))
    made = profile(model, TASK, slices_logits=True, dtype=model.dtype)
    assert (made.packs, made.why_not) == (False, "its attention has dropout")


def test_a_model_that_sees_no_further_than_a_window_is_packed_where_no_row_is_longer() -> None:
    model = adapted("mistral", torch.float32)
    for longest, wanted in ((64, ""), (65, "its attention sees 64 tokens, and rows are longer")):
        made = profile(model, TASK, slices_logits=True, dtype=model.dtype, longest=longest)
        assert (made.packs, made.why_not) == (not wanted, wanted)


def test_a_window_that_is_said_by_a_mask_alone_is_seen_too() -> None:
    model = adapted("llama", torch.float32)
    model.get_base_model().config.attention_chunk_size = 40  # as Llama 4's; nothing of it reaches the attention
    for longest in (40, 41):
        made = profile(model, TASK, slices_logits=True, dtype=model.dtype, longest=longest)
        assert (made.packs, "sees 40 tokens" in made.why_not) == (longest == 40, longest > 40)


def test_a_switched_off_adapter_is_off_in_the_fast_path_too() -> None:
    model = adapted("llama", torch.float32)
    fast = FastPaths(only(*PATHS), profile(model, TASK, slices_logits=True, dtype=model.dtype), METHOD)
    collate = Collator(TASK, None, fast.layout(Layout(0)), 400, torch.device("cpu"))
    with model.disable_adapter(), torch.no_grad():
        plain = FastPaths(OFF, fast.profile, METHOD)
        wanted = OBJECTIVE.step(
            model, Collator(TASK, None, plain.layout(Layout(0)), 400, torch.device("cpu"))(rows())
        ).sum
        with fast.on(model):
            found = OBJECTIVE.step(model, collate(rows())).sum
    assert float(found) == pytest.approx(float(wanted), rel=100 * EPS)


def test_a_low_rank_update_is_one_only_where_it_is_nothing_else() -> None:
    from peft import LoraConfig, get_peft_model

    for changes in ({"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}):
        config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"], **changes)
        model = get_peft_model(tiny.qwen2(), config)
        assert METHOD.low_rank(model.get_base_model().model.layers[0].self_attn.q_proj) is None, changes
    plain = get_peft_model(tiny.llama(), LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    layer = plain.get_base_model().model.layers[0].self_attn.q_proj
    update = METHOD.low_rank(layer)
    assert isinstance(update, LowRank)
    assert update.down is layer.lora_A["default"].weight
    assert METHOD.low_rank(plain.get_base_model().model.layers[0].self_attn.v_proj) is None


# torch.compile's own machinery still uses what torch has deprecated.
COMPILED = pytest.param(
    True, marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")]
)


# The functions themselves, in float64, against autograd's own.


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def test_attention_is_softmax_attention_within_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = doubles(1, 4, 300, 8), doubles(1, 2, 300, 8, seed=1), doubles(1, 2, 300, 8, seed=2)
    bounds = [0, 1, 141, 141 + 129, 300]
    out = attention.packed(q, k, v, torch.tensor(bounds, dtype=torch.int32), 140, 0.3)
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            q[:, :, a:b], k[:, :, a:b], v[:, :, a:b], is_causal=True, scale=0.3, enable_gqa=True
        )
        for a, b in pairwise(bounds)
    ]
    wanted = torch.cat(parts, dim=2).transpose(1, 2)
    torch.testing.assert_close(out, wanted)
    weight = doubles(*out.shape, seed=3).detach()
    # Keys' and values' gradients are summed over blocks in float32.
    for found, grad in zip(
        torch.autograd.grad(out, (q, k, v), weight), torch.autograd.grad(wanted, (q, k, v), weight), strict=True
    ):
        torch.testing.assert_close(found, grad, rtol=1e-5, atol=1e-6)
    kept = torch.autograd.grad(attention.packed(q, k, v, torch.tensor(bounds), 140, 0.3), q, weight)[0]
    monkeypatch.setattr(attention, "KEPT", 10)
    again = torch.autograd.grad(attention.packed(q, k, v, torch.tensor(bounds), 140, 0.3), q, weight)[0]
    torch.testing.assert_close(kept, again)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("compile", [False, COMPILED])
def test_rms_norm_is_its_formula(offset: float, compile: bool) -> None:
    x, weight = doubles(300, 32).float().detach().requires_grad_(), doubles(32, seed=1).float().detach()
    found = norm.rms_norm(x, weight, 1e-5, offset, compile=compile)
    wanted = x.double() * (x.double().pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt() * (weight.double() + offset)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)
    upstream = doubles(300, 32, seed=2).detach()
    grad = torch.autograd.grad(found, x, upstream.float())[0]
    torch.testing.assert_close(grad, torch.autograd.grad(wanted, x, upstream)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compile", [False, COMPILED])
def test_the_gate_is_silu_times_the_other_half(compile: bool) -> None:
    layer = torch.nn.Linear(16, 5).requires_grad_(False)
    group = linear.Group([linear.Adapted(layer, None)])
    both = doubles(40, 32).float().detach().requires_grad_()
    found = gate.gated(both, group, compile=compile)[:, :16]
    wanted = torch.nn.functional.silu(both[:, :16]) * both[:, 16:]
    torch.testing.assert_close(found, wanted)
    upstream = doubles(40, 16, seed=1).float().detach()
    torch.testing.assert_close(
        torch.autograd.grad(found, both, upstream)[0], torch.autograd.grad(wanted, both, upstream)[0]
    )


@pytest.mark.parametrize("tokens", [1, 8, 300])
def test_the_loss_from_hidden_states_is_that_of_the_logits(tokens: int) -> None:
    hidden, head = doubles(tokens, 16).float().detach().requires_grad_(), doubles(50, 16, seed=1).float().detach()
    targets_of = torch.arange(tokens) * 7 % 50
    weights = torch.rand(tokens, generator=torch.Generator().manual_seed(3)) + 0.1
    losses = torch.nn.functional.cross_entropy(hidden @ head.T, targets_of, reduction="none")
    wanted = (losses * weights).sum()
    found = loss.weighted_sum(hidden, head, targets_of, weights)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(found * 0.5, hidden)[0], torch.autograd.grad(wanted * 0.5, hidden)[0], rtol=1e-4, atol=1e-6
    )
    each, right = loss.scores(hidden, head, targets_of)
    torch.testing.assert_close(each, losses.detach())
    assert right.tolist() == ((hidden @ head.T).argmax(1) == targets_of).tolist()
    assert not each.requires_grad


@pytest.mark.parametrize("ranks", [(4, 0, 3), (0, 0, 0), (40,)])
def test_grouped_layers_give_what_they_give_alone(ranks: tuple[int, ...]) -> None:
    layers, wanted_of = [], []
    for index, rank in enumerate(ranks):
        base = torch.nn.Linear(24, 5 + index, bias=index != 1).requires_grad_(False)
        down = torch.nn.Parameter(doubles(rank, 24, seed=index).float().detach())
        up = torch.nn.Parameter(doubles(5 + index, rank, seed=index + 9).float().detach())
        layers.append(linear.Adapted(base, LowRank(down, up, 0.5) if rank else None))
        wanted_of.append((base.weight.clone(), base.bias, down, up))
    x = doubles(7, 24, seed=5).float().detach().requires_grad_()
    trained = [p for (_, _, down, up), rank in zip(wanted_of, ranks, strict=True) if rank for p in (down, up)]
    wanted = torch.cat(
        [torch.nn.functional.linear(x, w, b) + 0.5 * (x @ down.T) @ up.T for w, b, down, up in wanted_of], dim=1
    )
    group = linear.Group(layers)
    found = group(x[None])[0]
    torch.testing.assert_close(found, wanted)
    upstream = doubles(*found.shape, seed=6).float().detach()
    for a, b in zip(
        torch.autograd.grad(found, [x, *trained], upstream),
        torch.autograd.grad(wanted, [x, *trained], upstream),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    # An update of the parameters is seen by the next forward pass.
    for parameter in trained:
        parameter.data.mul_(2)
    if trained:
        assert not torch.equal(group(x), found)


def test_a_function_that_differs_is_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    right = install.rotary
    monkeypatch.setattr(install, "rotary", lambda *arguments, **rest: right(*arguments, **rest) * 1.01)
    _, _, put_in = outcome(adapted("llama", torch.float32), only(*PATHS))
    assert put_in["left"] == ["LlamaAttention"]
    assert put_in["replaced"] == {"norm": 5, "mlp": 2, "linear": 8}
