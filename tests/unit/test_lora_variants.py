"""Each variant of LoRA against its formula, in float64 from the tensors that are trained."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.lora_cases import EXPERTS, LORA, MODELS, fill, logits, put

# Sums of up to 264 products in float32.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def layers(model: Any, anatomy: Any) -> list[tuple[str, Any]]:
    return [(name, model.get_base_model().get_submodule(name)) for name in anatomy.targets]


def factors(layer: Any) -> tuple[Any, Any]:
    return tuple(getattr(layer, name)["default"].weight.detach().double() for name in ("lora_A", "lora_B"))


def weight(layer: Any) -> Any:
    """The base layer's, [outputs, inputs]."""
    stored = layer.get_base_layer().weight.detach().double()
    return stored.T if layer.fan_in_fan_out else stored


def bias(layer: Any) -> Any:
    found = getattr(layer.get_base_layer(), "bias", None)
    return 0.0 if found is None else found.detach().double()


def check(layer: Any, wanted: Any) -> None:
    """``wanted`` of x [rows, inputs], float64, is what the layer makes of it, and another thing than the base's."""
    x = torch.randn(4, layer.in_features, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = layer(x).double()
        torch.testing.assert_close(found, wanted(x.double()), **CLOSE)
        assert float((found - layer.get_base_layer()(x).double()).abs().max()) > 0.1


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", ["tied", "gpt2"])
def test_each_target_has_its_own_rank_and_scale(kind: str, rslora: bool) -> None:
    some, others = ("attn.c_attn", "mlp.c_proj") if kind == "gpt2" else ("q_proj", "*.1.mlp.*")
    model, _, anatomy = put(
        MODELS[kind](), alpha=6.0, rslora=rslora, rank_pattern={some: 3}, alpha_pattern={some: 5.0, others: 7.0}
    )
    fill(model)
    seen = set()
    for name, layer in layers(model, anatomy):
        first = name.endswith(some)
        second = name.endswith("mlp.c_proj") if kind == "gpt2" else ".1.mlp." in name
        rank, alpha = 3 if first else 4, 5 if first else 7 if second else 6
        a, b = factors(layer)
        assert (len(a), b.shape[1]) == (rank, rank)
        scale = alpha / rank**0.5 if rslora else alpha / rank
        check(layer, lambda x, s=scale, a=a, b=b, layer=layer: x @ (weight(layer) + s * b @ a).T + bias(layer))
        seen.add((rank, alpha))
    assert seen == {(3, 5), (4, 7), (4, 6)}


@pytest.mark.parametrize("kind", ["tied", "gpt2"])
def test_dora_scales_each_row_to_its_trained_length(kind: str) -> None:
    model, _, anatomy = put(MODELS[kind](), dora=True, alpha=6.0)
    for _, layer in layers(model, anatomy):
        torch.testing.assert_close(
            layer.lora_magnitude_vector["default"].weight.detach(), weight(layer).norm(dim=1).float()
        )
    fill(model)
    for _, layer in layers(model, anatomy):
        a, b = factors(layer)
        magnitude = layer.lora_magnitude_vector["default"].weight.detach().double()
        whole = weight(layer) + 6 / 4 * b @ a
        direction = whole / whole.norm(dim=1, keepdim=True)
        check(layer, lambda x, m=magnitude, d=direction, layer=layer: x @ (m[:, None] * d).T + bias(layer))


def test_dora_on_an_embedding_scales_each_of_its_columns() -> None:
    model, _, _ = put(MODELS["untied"](), dora=True, targets="embed_tokens", alpha=6.0)
    fill(model)
    layer = model.get_base_model().model.embed_tokens
    a, b = (layer.lora_embedding_A["default"].detach().double(), layer.lora_embedding_B["default"].detach().double())
    whole = layer.base_layer.weight.detach().double() + 6 / 4 * (b @ a).T
    magnitude = layer.lora_magnitude_vector["default"].weight.detach().double()
    ids = torch.arange(20)
    with torch.no_grad():
        torch.testing.assert_close(layer(ids).double(), (magnitude * whole / whole.norm(dim=0))[ids], **CLOSE)


def test_an_embedding_s_rows_get_an_update() -> None:
    model, _, anatomy = put(MODELS["untied"](), targets="embed_tokens", alpha=6.0)
    assert anatomy.targets == {"model.embed_tokens": (264, 32)}
    fill(model)
    layer = model.get_base_model().model.embed_tokens
    a, b = (layer.lora_embedding_A["default"].detach().double(), layer.lora_embedding_B["default"].detach().double())
    assert (a.shape, b.shape) == ((4, 264), (32, 4))
    ids = torch.tensor([[3, 7, 3]])
    with torch.no_grad():
        found, base = layer(ids).double(), layer.base_layer(ids).double()
        torch.testing.assert_close(found, base + 6 / 4 * (b @ a).T[ids], **CLOSE)
        assert float((found - base).abs().max()) > 0.1


@pytest.mark.parametrize("kind", ["tied", "qwen2", "gpt2"])
def test_lora_bias_is_scaled_with_the_update(kind: str) -> None:
    model, _, anatomy = put(MODELS[kind](), lora_bias=True, alpha=6.0)
    fill(model)
    for _, layer in layers(model, anatomy):
        a, b = factors(layer)
        added = layer.lora_B["default"].bias.detach().double()
        check(layer, lambda x, a=a, b=b, c=added, layer=layer: (
            x @ (weight(layer) + 1.5 * b @ a).T + bias(layer) + 1.5 * c
        ))  # fmt: skip


# Starts.


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["tied", "gpt2"])
@pytest.mark.parametrize(
    ("settings", "exact"),
    [
        ({"init": "gaussian"}, True),
        ({"dora": True}, True),
        ({"dora": True, "init": "gaussian", "rslora": True}, True),
        ({"lora_bias": True}, True),
        ({"trainable_tokens": [1, 2]}, True),
        ({"init": "orthogonal"}, False),
        ({"init": "pissa"}, False),
        ({"init": "pissa_niter_4"}, False),
        ({"init": "olora"}, False),
        ({"init": "olora", "rslora": True, "alpha": 1.0}, False),
    ],
)
def test_training_starts_from_the_base_s_own_outputs(
    settings: dict[str, Any], exact: bool, kind: str, dtype: torch.dtype
) -> None:
    base = MODELS[kind]().to(dtype).eval()
    wanted = logits(base)
    model, _, _ = put(base, dtype, **settings)
    found = logits(model)
    if exact:
        assert torch.equal(found, wanted)
    else:  # two large products that cancel, in float32 and then in the base's dtype
        eps = torch.finfo(dtype).eps
        assert float((found - wanted).norm()) < 8 * eps * float(wanted.norm())


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", ["tied", "gpt2"])
def test_pissa_starts_with_the_largest_singular_values(kind: str, rslora: bool) -> None:
    model, _, anatomy = put(MODELS[kind](), init="pissa", rank_pattern={"*.1.*": 6}, rslora=rslora, alpha=6.0)
    for name, layer in layers(model, anatomy):
        a, b = factors(layer)
        rank = 6 if ".1." in name else 4
        assert len(a) == rank
        scale = 6 / rank**0.5 if rslora else 6 / rank
        u, values, vh = np.linalg.svd(weight(layer).numpy(), full_matrices=False)
        largest = torch.from_numpy(u[:, :rank] * values[:rank] @ vh[:rank])
        torch.testing.assert_close(scale * b @ a, largest, **CLOSE)
        torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0), **CLOSE)  # shared out evenly


@pytest.mark.parametrize("kind", ["tied", "gpt2"])
def test_a_randomised_pissa_is_near_the_exact_one(kind: str) -> None:
    exact, _, anatomy = put(MODELS[kind](), init="pissa")
    near, _, _ = put(MODELS[kind](), init="pissa_niter_4")
    for (_, layer), (_, other) in zip(layers(exact, anatomy), layers(near, anatomy), strict=True):
        a, b = factors(layer)
        found_a, found_b = factors(other)
        wanted, found = 2 * b @ a, 2 * found_b @ found_a
        # No matrix of that rank is nearer to W than the exact one; the other is nearly as near.
        error = (weight(layer) - wanted).norm()
        assert error <= (weight(layer) - found).norm() * (1 + 1e-6)
        assert (weight(layer) - found).norm() < 1.05 * error


@pytest.mark.parametrize("kind", ["tied", "gpt2"])
def test_olora_starts_with_the_first_columns_of_a_qr_decomposition(kind: str) -> None:
    model, _, anatomy = put(MODELS[kind](), init="olora")
    for _, layer in layers(model, anatomy):
        a, b = factors(layer)
        torch.testing.assert_close(b.T @ b, torch.eye(4, dtype=torch.float64), **CLOSE)
        q, r = np.linalg.qr(weight(layer).numpy())
        torch.testing.assert_close(b @ a, torch.from_numpy(q[:, :4] @ r[:4]), **CLOSE)


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("kind", ["tied", "gpt2"])
def test_a_start_from_weights_trains_what_is_left_beside_the_rest(kind: str, init: str) -> None:
    """h = W_rest x + s B A x, with W_rest = W - s B0 A0, as the papers have it."""
    base = MODELS[kind]()
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    model, _, anatomy = put(base, init=init, alpha=6.0)
    rest = {name: weight(layer) - 1.5 * b @ a for name, layer in layers(model, anatomy) for a, b in [factors(layer)]}
    fill(model)
    for name, layer in layers(model, anatomy):
        a, b = factors(layer)
        check(layer, lambda x, w=rest[name] + 1.5 * b @ a, layer=layer: x @ w.T + bias(layer))
    after = {name.replace(".base_layer", ""): p for name, p in model.get_base_model().named_parameters()}
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_fixed_part_is_never_trained_not_even_after_the_adapter_was_off() -> None:
    model, _, _ = put(MODELS["tied"](), init="pissa")
    before = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    with model.disable_adapter():
        logits(model)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == before
    assert not any("start" in name for name in (*dict(model.named_parameters()), *model.state_dict()))
    assert sum("start" in name for name, _ in model.named_buffers()) == 2 * 14


def test_gaussian_and_orthogonal_starts_are_in_float32_on_any_base() -> None:
    for init in ("gaussian", "orthogonal"):
        model, _, anatomy = put(MODELS["tied"](), torch.bfloat16, init=init, rank=8)
        firsts = []
        for _, layer in layers(model, anatomy):
            a, b = (getattr(layer, name)["default"].weight.detach() for name in ("lora_A", "lora_B"))
            assert not torch.equal(a, a.to(torch.bfloat16).float())
            assert float((b.double() @ a.double()).abs().max()) < 1e-6
            assert bool(b.any()) is (init == "orthogonal")
            firsts.append(a.flatten())
        if init == "gaussian":  # of 4000 numbers, the deviation is known to some percent
            assert float(torch.cat(firsts).std()) == pytest.approx(1 / 8, rel=0.05)


# Experts.


def updated(base: Any, model: Any, scale: float) -> Any:
    """``base`` with the trained updates added to each expert's weight, in float64 from A and B by hand."""
    from peft.tuners.lora import LoraLayer

    made = copy.deepcopy(base)
    count = 0
    for name, layer in model.get_base_model().named_modules():
        if not isinstance(layer, LoraLayer) or not hasattr(layer, "parameter_name"):
            continue
        a, b = (factor.numpy() for factor in factors(layer))
        parameter = made.get_submodule(name.replace(".base_layer", "")).get_parameter(layer.parameter_name)
        number = len(parameter)
        rank = len(a) // number
        for expert in range(number):
            # A's rows stand expert by expert, B's columns rank by rank.
            update = scale * b[:, expert::number] @ a[expert * rank : (expert + 1) * rank]
            stored = update if update.shape == parameter[expert].shape else update.T
            parameter.data[expert] += torch.from_numpy(stored).float()
        count += 1
    assert count == 4
    return made


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss", "qwen3_moe"])
def test_each_expert_gets_an_update_of_its_own(kind: str) -> None:
    base = MODELS[kind]().eval()
    model, _, _ = put(copy.deepcopy(base), targets=[], target_parameters=EXPERTS, alpha=6.0)
    fill(model)
    found, wanted = logits(model), logits(updated(base, model, 6 / 4))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert float((found - logits(base)).abs().max()) > 0.1


def test_the_update_of_one_expert_is_in_no_other() -> None:
    model, _, _ = put(MODELS["mixtral"](), targets=[], target_parameters="gate_up_proj", rank=2)
    layer = model.get_base_model().model.layers[0].mlp.experts
    fill(model)
    with torch.no_grad():
        layer.lora_A["default"].weight[:4] = 0.0  # the first two experts' rows, two each
        delta = layer.get_delta_weight("default")
    assert [bool(each.any()) for each in delta] == [False, False, True, True]


# Beside the targets.


@pytest.mark.parametrize("kind", ["tied", "untied", "gpt2", "gemma2"])
def test_trained_rows_stand_in_for_the_embedding_s_and_for_the_head_s_where_they_are_one(kind: str) -> None:
    base = MODELS[kind]().eval()
    where = "transformer.h" if kind == "gpt2" else "model.layers"
    model, _, _ = put(copy.deepcopy(base), targets=f"{where}.0.*", trainable_tokens=[5, 2])
    embedding = model.get_base_model().get_input_embeddings()
    rows = embedding.token_adapter.trainable_tokens_delta["default"]
    own = base.get_input_embeddings().weight
    assert torch.equal(rows.detach(), own[[5, 2]])
    with torch.no_grad():
        rows.copy_(torch.randn(rows.shape, generator=torch.Generator().manual_seed(2)))
        own[[5, 2]] = rows
    tied = base.get_output_embeddings().weight is own
    assert tied is (kind != "untied")
    torch.testing.assert_close(logits(model), logits(base), **CLOSE)
    loss = model(input_ids=torch.tensor([[5, 2, 5]])).logits.square().sum()
    loss.backward()
    assert all(rows.grad.any(dim=1))


@pytest.mark.parametrize(
    ("kind", "whole"),
    [
        ("tied", ["norm", "input_layernorm", "embed_tokens"]),
        ("untied", ["lm_head", "embed_tokens", "post_attention_layernorm"]),
        ("gpt2", ["wpe", "ln_1", "ln_f"]),
        ("mixtral", ["gate", "lm_head"]),
        ("tied", ["*.0.self_attn", "*.1.mlp"]),
    ],
)
def test_modules_trained_whole_stand_in_for_the_base_s(kind: str, whole: list[str]) -> None:
    base = MODELS[kind]().eval()
    model, _, anatomy = put(copy.deepcopy(base), modules_to_save=whole)
    generator = torch.Generator().manual_seed(2)
    trained = {name.replace(".modules_to_save.default", ""): p for name, p in model.get_base_model().named_parameters()}
    for name in anatomy.beside:
        with torch.no_grad():
            trained[name].copy_(torch.randn(trained[name].shape, generator=generator) * 0.3)
            base.get_parameter(name).copy_(trained[name])
    torch.testing.assert_close(logits(model), logits(base), **CLOSE)
    assert len(anatomy.beside) >= 2


def test_a_tied_matrix_trained_whole_gets_its_gradient_from_both_ends() -> None:
    model, _, _ = put(MODELS["tied"](), modules_to_save="embed_tokens")
    base = model.get_base_model()
    weight = base.model.embed_tokens.modules_to_save["default"].weight
    assert base.lm_head.modules_to_save["default"].weight is weight
    # Token 7 is not read, so that its row has a gradient as an output alone; token 5 is read.
    model(input_ids=torch.tensor([[5, 6]])).logits[0, :, 7].sum().backward()
    assert bool(weight.grad[7].any())
    assert bool(weight.grad[5].any())
    assert not bool(weight.grad[9].any())


# Rates.


def test_loraplus_raises_b_s_rate_and_no_other() -> None:
    model, made, _ = put(
        MODELS["untied"](), loraplus=16.0, dora=True, modules_to_save="norm", trainable_tokens=[3],
    )  # fmt: skip
    rates = {name: LORA.rate(made, name) for name, p in model.named_parameters() if p.requires_grad}
    assert {rate for name, rate in rates.items() if ".lora_B." in name} == {16.0}
    assert {rate for name, rate in rates.items() if ".lora_B." not in name} == {1.0}
    kinds = {name.split(".")[-3 if name.endswith("weight") else -2] for name in rates}
    assert {"lora_A", "lora_B", "lora_magnitude_vector", "modules_to_save", "trainable_tokens_delta"} <= kinds
    plain, made, _ = put(MODELS["untied"](), lora_bias=True)
    assert {LORA.rate(made, name) for name, _ in plain.named_parameters()} == {1.0}
