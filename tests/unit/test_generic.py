"""Methods made from PEFT's own config classes: their settings, their counts, and what they do to a model."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml

from peftctl.errors import MachineError, RecipeError, UsageError
from peftctl.methods import METHODS, BaseName, DataFacts
from peftctl.methods.described import described
from peftctl.methods.generic import GENERIC
from peftctl.methods.generic_facts import FACTS
from peftctl.methods.generic_limits import why_not
from peftctl.methods.peft_method import own_fields
from peftctl.model import adapter, attach, targets
from peftctl.recipe import load
from peftctl.recipe.resolve import resolve
from tests import tiny

DATA = DataFacts(rows=8, tokens=100, supervised_tokens=50, longest=20, steps=20)
# Settings that go into a model of width 32.
SMALL: dict[str, dict[str, Any]] = {
    "adamss": {"r": 8, "num_subspaces": 2}, "adaption_prompt": {"adapter_len": 3}, "c3a": {"block_size": 8},
    "cartridge": {"num_virtual_tokens": 4}, "fourierft": {"n_frequency": 30}, "gralora": {"r": 4}, "hira": {"r": 4},
    "miss": {"r": 4}, "oft": {"oft_block_size": 8}, "peanut": {"r": 4}, "psoft": {"r": 4}, "pvera": {"r": 6},
    "randlora": {"r": 4}, "road": {"group_size": 8}, "shira": {"r": 2}, "supertuning": {"sparsity": 0.9},
    "tinylora": {"u": 5}, "trainable_tokens": {"token_indices": [3, 5, 8]}, "vera": {"r": 6},
    "vblora": {"vector_length": 8, "num_vectors": 16}, "waveft": {"n_frequency": 30},
}  # fmt: skip
REFUSED = {name for name, facts in FACTS.items() if facts.refused}
TRAINED = sorted(GENERIC.keys() - REFUSED)


def put(name: str, model: Any = None, **settings: Any) -> tuple[Any, Any, Any]:
    """The PEFT model in eval mode with its anatomy and settings."""
    method = GENERIC[name]
    made = method.resolve(method.settings(**{**SMALL.get(name, {}), **settings}))
    model = (model or tiny.llama()).eval().requires_grad_(False)
    wanted = method.choose(model) if made.wanted is None else made.wanted
    matched = method.narrow(model, made, targets.resolve(model, wanted, method.targetable(model)))
    anatomy = attach.anatomy(model, matched, method.beside(model, made))
    torch.manual_seed(0)
    return attach.attach(model, method, made, anatomy, "CAUSAL_LM", DATA).eval(), anatomy, made


def fill(model: Any) -> None:
    """Random numbers added to everything that is trained, so that it does something."""
    generator = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def logits(model: Any, ids: Any, mask: Any = None) -> Any:
    with torch.no_grad():
        return model(
            input_ids=ids, attention_mask=torch.ones_like(ids) if mask is None else mask, use_cache=False
        ).logits


def config_class(name: str) -> Any:
    return peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(name.upper())]


# Settings.


def test_every_method_of_peft_is_a_method_here() -> None:
    own = {method.peft_type for name, method in METHODS.items() if name not in GENERIC and method.peft_type}
    assert {each.value for each in peft.PEFT_TYPE_TO_CONFIG_MAPPING} == own | {
        each.peft_type for each in GENERIC.values()
    }
    assert not own & {method.peft_type for method in GENERIC.values()}


@pytest.mark.parametrize("name", TRAINED)
def test_settings_are_peft_s_fields_with_peft_s_defaults(name: str) -> None:
    fields = {field.name: field for field in dataclasses.fields(config_class(name))}
    made = GENERIC[name].settings()
    offered = own_fields(made)
    assert offered.keys() <= fields.keys()
    assert all(why_not(name, field) for field in fields.keys() - offered.keys())
    for field, value in offered.items():
        declared = fields[field]
        factory = declared.default_factory
        wanted = declared.default if factory is dataclasses.MISSING else factory()
        wanted = FACTS[name].defaults.get(field, getattr(wanted, "value", wanted))
        assert (value or None) == (wanted or None), field


@pytest.mark.parametrize("name", TRAINED)
def test_the_defaults_are_a_recipe_that_peft_takes(name: str, tmp_path: Path) -> None:
    recipe = loaded(tmp_path, {"name": name, **({"token_indices": [1]} if name == "trainable_tokens" else {})})
    again = loaded(tmp_path, json.loads(resolve(recipe).method.model_dump_json(exclude_none=True)))
    assert again.method == resolve(recipe).method
    config = config_class(name)(**GENERIC[name]._fields(recipe.method, []))
    assert config.peft_type == name.upper()


def loaded(folder: Path, method: dict[str, Any]) -> Any:
    path = folder / "recipe.yaml"
    path.write_text(
        yaml.safe_dump({"model": "o/m", "data": {"train": "rows.jsonl"}, "method": method, "output": "runs/x"})
    )
    return load(path)


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"name": "boft", "boft_blok_size": 4}, ["boft_blok_size: no such setting", "did you mean boft_block_size?"]),
        ({"name": "boft", "r": 4}, ["r: no such setting"]),
        ({"name": "boft", "target_modules": "q_proj"}, ["target_modules: is spelled targets here (found 'q_proj')"]),
        ({"name": "boft", "layers_to_transform": [1]}, ["layers_to_transform: is said by targets here"]),
        ({"name": "vera", "bias": "all"}, ["bias: is not offered: PEFT changes the model's own biases then"]),
        ({"name": "vera", "task_type": "CAUSAL_LM"}, ["task_type: follows from task.name"]),
        ({"name": "vera", "init_weights": False}, ["init_weights: is not offered"]),
        ({"name": "vera", "r": "8"}, ["r: must be a whole number (found '8')"]),
        ({"name": "vera", "r": 0}, ["r: out of range (found 0); allowed: at least 1"]),
        ({"name": "vera", "vera_dropout": 1.0}, ["vera_dropout: out of range (found 1.0); allowed: less than 1"]),
        ({"name": "vera", "d_initial": float("inf")}, ["d_initial: must be a finite number"]),
        ({"name": "vera", "save_projection": "yes please"}, ["save_projection: must be true or false"]),
        ({"name": "glora", "config_C": "lra"}, ["config_C: no such value", "lora, vector, none; did you mean lora?"]),
        ({"name": "miss", "init_weights": "bot"}, ["init_weights: no such value", "true, false, bat, mini; did you"]),
        ({"name": "miss", "init_weights": False}, ["init_weights: is for PEFT's own tests where it is false"]),
        ({"name": "trainable_tokens"}, ["token_indices: is missing, which trainable_tokens needs"]),
        ({"name": "trainable_tokens", "token_indices": []}, ["token_indices: too short"]),
        ({"name": "trainable_tokens", "token_indices": ["a"]}, ["token_indices[0]: must be a whole number"]),
        ({"name": "delora", "rank_pattern": {"q_proj": "x"}}, ["rank_pattern.q_proj: must be a whole number"]),
        ({"name": "delora", "rank_pattern": {"q_proj": 0}}, ["rank_pattern.q_proj: out of range"]),
        ({"name": "hra", "r": 3}, ["r: must be even: reflections start in pairs"]),
        ({"name": "gralora", "r": 5}, ["r: must be a multiple of gralora_k, which is 2 (found 5)"]),
        ({"name": "boft", "boft_block_size": 4, "boft_block_num": 2}, ["and boft_block_size say the same"]),
        ({"name": "oft", "oft_block_size": 0}, ["oft_block_size: and r are both 0"]),
        ({"name": "oft", "eps": 0.1}, ["eps: has no effect without coft: true (found 0.1)"]),
        ({"name": "supertuning", "lora_alpha": 3.0}, ["lora_alpha: has no effect without r (found 3.0)"]),
        ({"name": "adamss", "mask_interval": 7}, ["mask_interval: has no effect without use_asa: true"]),
        ({"name": "adamss", "use_asa": True, "init_warmup": 1000}, ["init_warmup: must be less than final_warmup"]),
        ({"name": "adamss", "use_asa": True, "mask_interval": 30}, ["mask_interval: must divide final_warmup"]),
        ({"name": "cartridge", "num_virtual_tokens": 1}, ["num_frozen_tokens: must be less than num_virtual_tokens"]),
        ({"name": "glora", "config_A_B": "none", "config_C": "none", "config_D_E": "none"}, ["nothing to train"]),
        ({"name": "vblora", "topk": 256}, ["topk: must be less than num_vectors, which is 256"]),
        ({"name": "lily", "r": 4}, ["r: lily cannot be trained: PEFT mixes its parts by the mean over all tokens"]),
        ({"name": "tinylra"}, ["name: no such method (found 'tinylra')", "did you mean tinylora?"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_as_of_our_own_methods(method: dict[str, Any], said: list[str], tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        loaded(tmp_path, method)
    assert len(refused.value.faults) == 1
    text = str(refused.value.faults[0])
    assert "method." in text
    assert text.startswith(str(tmp_path / "recipe.yaml"))
    for part in said:
        assert part in text


def test_every_fault_of_a_method_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as refused:
        loaded(tmp_path, {"name": "boft", "bias": "all", "task_type": "X", "boft_dropout": 2.0, "blok": 1})
    assert {fault.key for fault in refused.value.faults} == {
        "method.bias", "method.task_type", "method.boft_dropout", "method.blok",
    }  # fmt: skip


def test_the_size_that_is_written_is_the_one_that_is_meant() -> None:
    for name, size, other in (("boft", "boft_block_num", "boft_block_size"), ("oft", "r", "oft_block_size")):
        method = GENERIC[name]
        made = method.resolve(method.settings(**{size: 4}))
        assert (getattr(made, size), getattr(made, other)) == (4, 0)
        assert method.resolve(made) == made


def test_a_recipe_of_a_generic_method_is_checked_without_heavy_imports(tmp_path: Path) -> None:
    loaded(tmp_path, {"name": "boft", "boft_block_size": 4, "targets": ["q_proj", "v_proj"]})
    code = (
        f"import sys; sys.argv = ['peftctl', 'check', {str(tmp_path / 'recipe.yaml')!r}]\n"
        "from peftctl.cli import main\ntry:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print('LOADED', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = {name.split(".")[0] for name in done.stdout.rpartition("LOADED")[2].split()}
    assert "pydantic" in names
    assert not names & {"torch", "transformers", "peft", "accelerate", "numpy", "sklearn"}


def test_settings_are_made_when_asked_for_and_once() -> None:
    code = (
        "import peftctl.recipe\nfrom peftctl.methods.generic_settings import settings_of\n"
        "assert not settings_of.cache_info().currsize\nfrom peftctl.methods import METHODS\n"
        "assert METHODS['boft'].settings is METHODS['boft'].settings\nassert settings_of.cache_info().currsize == 1"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", sorted(GENERIC))
def test_it_is_described_with_its_paper_and_settings(name: str) -> None:
    text = described(METHODS[name])
    assert FACTS[name].summary in text
    assert FACTS[name].paper in text
    assert all(f"  {setting} = " in text for setting in GENERIC[name].settings.model_fields if setting != "name")


# Counts, against formulas of the papers: of a layer's inputs i and outputs o.

FORMULAS: dict[str, Callable[[Any, int, int], float]] = {
    "beft": lambda s, i, o: o,
    "boft": lambda s, i, o: i * s.boft_block_size + o,
    "c3a": lambda s, i, o: i * o // s.block_size,
    "deft": lambda s, i, o: s.r * (i + o),
    "delora": lambda s, i, o: s.r * (i + o) + 1,
    "fourierft": lambda s, i, o: s.n_frequency,
    "glora": lambda s, i, o: 2 * s.r * (i + o),
    "gralora": lambda s, i, o: s.r * (i + o),
    "hira": lambda s, i, o: s.r * (i + o),
    "hra": lambda s, i, o: s.r * i,
    "miss": lambda s, i, o: s.r * o,
    "oft": lambda s, i, o: i // s.oft_block_size * s.oft_block_size * (s.oft_block_size - 1) // 2,
    "osf": lambda s, i, o: (min(i, o) - min(i, o) // 2) * (i + o + 1),
    "peanut": lambda s, i, o: s.r * (i + o),
    "psoft": lambda s, i, o: s.r * (s.r - 1) // 2 + 2 * s.r,
    "pvera": lambda s, i, o: 2 * s.r + o,
    "road": lambda s, i, o: o,
    "shira": lambda s, i, o: s.r * (i + o),
    "tinylora": lambda s, i, o: s.u,
    "vera": lambda s, i, o: s.r + o,
    "waveft": lambda s, i, o: s.n_frequency,
}


@pytest.mark.parametrize("name", FORMULAS)
def test_as_many_parameters_are_trained_as_the_formula_says(name: str) -> None:
    model, anatomy, made = put(name)
    assert len(anatomy.targets) == 14
    wanted = sum(FORMULAS[name](made, *shape) for shape in anatomy.targets.values())
    assert attach.trainable(model) == GENERIC[name].parameters(made, anatomy) == wanted


def test_what_layers_share_is_counted_once() -> None:
    for name, settings, shared in (("vblora", {}, 16 * 8), ("unilora", {"theta_d_length": 77}, 77)):
        model, anatomy, made = put(name, **settings)
        own = sum(made.r * (i + o) // 8 * 16 for i, o in anatomy.targets.values()) if name == "vblora" else 0
        assert attach.trainable(model) == GENERIC[name].parameters(made, anatomy) == shared + own


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [
        ("adaption_prompt", {}, 2 * (3 * 32 + 1)),
        ("adaption_prompt", {"adapter_layers": 1}, 3 * 32 + 1),
        ("cartridge", {}, 3 * 2 * 2 * 16),
        ("trainable_tokens", {}, 3 * 32),
    ],
)
def test_methods_without_targets_are_counted_too(name: str, settings: dict[str, Any], wanted: int) -> None:
    model, anatomy, made = put(name, **settings)
    assert not anatomy.targets
    assert attach.trainable(model) == GENERIC[name].parameters(made, anatomy) == wanted


@pytest.mark.parametrize(
    "settings", [{}, {"shadow_num_hidden_layers": 2}, {"share_embeddings": False}, {"shadow_hidden_size": 16}]
)
@pytest.mark.parametrize("kind", [tiny.llama, lambda: tiny.gpt2(dropout=0.0)])
def test_all_of_the_shadow_that_is_trained_is_used(kind: Any, settings: dict[str, Any]) -> None:
    model, _, _ = put("shadow", kind(), **settings)  # attach compares the count
    fill(model)
    model.train()(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name


def test_a_bias_is_counted_where_there_is_one() -> None:
    without, *_ = put("glora")
    model, anatomy, made = put("glora", tiny.qwen2())
    biased = [name for name in anatomy.targets if f"{name}.bias" in anatomy.beside]
    assert len(biased) == 3 * 2
    # C [inputs, r] and [r, 1], D and E a number each.
    extra = sum(made.r * (anatomy.targets[name][0] + 1) + 2 for name in biased)
    assert attach.trainable(model) == attach.trainable(without) + extra


# What it does.


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize("name", TRAINED)
def test_a_row_is_the_same_alone_padded_and_before_other_tokens(name: str) -> None:
    plain = tiny.llama().eval()
    model, *_ = put(name)
    fill(model)
    ids = torch.tensor([[5, 3, 8, 250, 17, 9]])
    alone = logits(model, ids)
    longer = torch.tensor([[5, 3, 8, 250, 17, 9, 0, 0], [7, 8, 9, 10, 11, 12, 13, 14]])
    mask = torch.tensor([[1] * 6 + [0] * 2, [1] * 8])
    close = {"rtol": 1e-4, "atol": 1e-4 * float(alone.abs().max())}
    torch.testing.assert_close(logits(model, longer, mask)[:1, : alone.shape[1]], alone, **close)
    changed = logits(model, torch.tensor([[5, 3, 8, 250, 17, 99]]))
    torch.testing.assert_close(changed[:, :-1], alone[:, :-1], **close)
    base = logits(plain, ids)
    assert float((alone[:, -6:] - base).abs().max()) > 1e-4  # it does something
    with model.disable_adapter():
        torch.testing.assert_close(logits(model, ids)[:, -6:], base, **close)


def test_lily_is_refused_because_rows_see_each_other() -> None:
    """When PEFT's Lily no longer does, it can be had."""
    model = peft.get_peft_model(tiny.llama(), peft.LilyConfig(r=4, target_modules=["q_proj"])).eval()
    fill(model)
    ids = torch.tensor([[5, 6, 7, 8]])
    both = logits(model, torch.tensor([[5, 6, 7, 8], [100, 101, 102, 103]]))
    assert float((both[0] - logits(model, ids)[0]).abs().max()) > 1e-4


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_trained_says_why(name: str) -> None:
    method, model = GENERIC[name], tiny.llama()
    for refuse in (
        lambda: method.narrow(model, method.settings(), {}),
        lambda: method.build(model, method.settings(), [], "CAUSAL_LM", DATA),
    ):
        with pytest.raises(UsageError) as refused:
            refuse()
        assert refused.value.message == f"method: {name} cannot be trained: {FACTS[name].refused}"


@pytest.mark.parametrize("name", ["adamss", "osf", "psoft", "tinylora", "frod"])
def test_a_machine_that_rounds_otherwise_reads_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Singular vectors come with either sign; what was trained with one is not to be read with the other."""
    model, _, made = put(name)
    fill(model)
    ids = torch.tensor([[5, 6, 7, 8]])
    trained = logits(model, ids)
    GENERIC[name].save(model, made, BaseName("base", None), tmp_path)
    svd, lowrank = torch.linalg.svd, torch.svd_lowrank

    def turned(u: Any, s: Any, v: Any, vectors: Any) -> tuple[Any, Any, Any]:
        signs = torch.tensor([1.0, -1.0]).repeat(len(s))[: len(s)].to(u.dtype)
        return u * signs, s, vectors(v, signs)

    monkeypatch.setattr(torch.linalg, "svd", lambda *a, **k: turned(*svd(*a, **k), lambda v, signs: v * signs[:, None]))
    monkeypatch.setattr(torch, "svd_lowrank", lambda *a, **k: turned(*lowrank(*a, **k), lambda v, signs: v * signs))
    read = attach.load(tiny.llama().eval(), GENERIC[name], made, tmp_path)
    torch.testing.assert_close(logits(read.eval(), ids), trained, rtol=1e-4, atol=1e-4 * float(trained.abs().max()))


@pytest.mark.parametrize("name", ["adaption_prompt", "shadow", "psoft", "trainable_tokens"])
def test_another_adapter_goes_where_one_was(name: str, tmp_path: Path) -> None:
    model, _, made = put(name)
    fill(model)
    ids = torch.tensor([[5, 3, 8, 7]])
    trained = logits(model, ids)
    GENERIC[name].save(model, made, BaseName("base", None), tmp_path)
    read = adapter.reload(model, GENERIC[name], made, tmp_path)
    assert torch.equal(logits(read, ids), trained)
    base = read.get_base_model()
    assert len(base._forward_pre_hooks) == len(base._forward_hooks) == (1 if name == "shadow" else 0)


# Shapes.


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("c3a", {"block_size": 5}, "method.block_size: does not divide the inputs and outputs of every target (found "
         "5; model.layers.0.self_attn.q_proj has 32 inputs and 32 outputs); allowed: 1, 2, 4, 8, 16"),
        ("boft", {"boft_block_size": 6}, "method.boft_block_size: does not divide the inputs of every target (found"),
        ("boft", {"boft_block_num": 5}, "method.boft_block_num: does not divide the inputs"),
        ("oft", {"oft_block_size": 5}, "method.oft_block_size: does not divide the inputs"),
        ("road", {"group_size": 64}, "method.group_size: does not divide the outputs of every target (found 64; "),
        ("vblora", {"vector_length": 256}, "allowed: 1, 2, 4, 8, 16"),
        ("gralora", {"r": 6, "gralora_k": 3}, "method.gralora_k: does not divide the inputs and outputs"),
        ("miss", {"r": 5, "init_weights": "bat"}, "method.r: does not divide the inputs and outputs"),
        ("miss", {"r": 64}, "method.r: is more than the inputs of a target (found 64); allowed: up to 32"),
        ("psoft", {"r": 20}, "method.r: is more than a target has (found 20); allowed: up to 16"),
        ("osf", {"effective_rank": 16}, "method.effective_rank: is kept of every target, and the rest is trained"),
        ("osf", {"effective_rank": 2.5}, "allowed: a whole number up to 15, or a share below 1"),
        ("adamss", {"use_asa": True, "final_warmup": 10, "init_warmup": 1, "mask_interval": 1},
         "method.asa_target_subspaces: leaves all subspaces as they are (found 50); allowed: less than the 28"),
        ("adamss", {"use_asa": True, "asa_target_subspaces": 14}, "method.final_warmup: subspaces would not all be"),
        ("trainable_tokens", {"token_indices": [264]}, "method.token_indices: the model has no such token (found 264); "
         "allowed: 0 to 263"),
        ("delora", {"rank_pattern": {"q_prj": 2}}, "method.rank_pattern: 'q_prj' matches no target"),
    ],
)  # fmt: skip
def test_what_does_not_go_into_the_model_is_said_with_what_does(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as refused:
        put(name, **settings)
    assert said in refused.value.message


def test_what_is_said_by_target_is_said_to_peft_by_full_names() -> None:
    model, *_ = put("delora", rank_pattern={"q_proj": 2, "layers.1.mlp.up_proj": 3}, lambda_pattern={"k_proj": 2.5})
    config = model.peft_config["default"]
    assert config.rank_pattern == {
        "model.layers.0.self_attn.q_proj": 2, "model.layers.1.self_attn.q_proj": 2, "model.layers.1.mlp.up_proj": 3,
    }  # fmt: skip
    layers = model.get_base_model().model.layers
    assert [layer.self_attn.q_proj.delora_A["default"].shape[0] for layer in layers] == [2, 2]
    assert [layer.mlp.up_proj.delora_A["default"].shape[0] for layer in layers] == [8, 3]
    assert float(layers[0].self_attn.k_proj.delora_lambda["default"].detach()) == 2.5


def test_a_number_of_singular_vectors_is_no_share_of_them() -> None:
    model, *_ = put("osf", effective_rank=8, rank_pattern={"q_proj": 0.25})
    assert model.peft_config["default"].effective_rank == 8
    layer = model.get_base_model().model.layers[0]
    assert layer.mlp.up_proj.osf_svd_params["default"]["U_low"].shape[1] == 32 - 8
    assert layer.self_attn.q_proj.osf_svd_params["default"]["U_low"].shape[1] == 32 - 8


def test_osf_says_that_it_does_nothing_to_transposed_layers() -> None:
    with pytest.raises(UsageError, match="osf trains nothing in transposed layers"):
        put("osf", tiny.gpt2())


def test_a_missing_package_is_the_machine_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MachineError, match="method: adamss needs a package that is not installed: scikit-learn"):
        put("adamss")


def test_peft_drops_subspaces_of_adamss_as_the_run_goes_on() -> None:
    settings = {"use_asa": True, "asa_target_subspaces": 14, "init_warmup": 0, "final_warmup": 4, "mask_interval": 1}
    model, *_ = put("adamss", **settings)
    update = GENERIC["adamss"].after_update
    assert update is not None
    fill(model)
    trained = []
    for step in range(6):
        model.zero_grad()
        model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.square().sum().backward()
        update(model, step)
        trained.append(sum(p.requires_grad for name, p in model.named_parameters() if ".adamss_B." in name))
    assert trained[0] > 14
    assert trained[-1] <= 14
    assert [name for name, method in GENERIC.items() if method.after_update] == ["adamss"]


# What PEFT does that settings were taken out for: when it no longer does, they can be had.


def test_hra_with_gram_schmidt_does_not_start_from_the_base() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    base = logits(tiny.llama().eval(), ids)
    for orthogonal, starts_there in ((False, True), (True, False)):
        config = peft.HRAConfig(r=4, apply_GS=orthogonal, target_modules=["q_proj", "v_proj", "o_proj"])
        model = peft.get_peft_model(tiny.llama().eval(), config)
        assert bool((logits(model, ids) - base).abs().max() < 1e-3) is starts_there


def test_settings_without_effect_in_peft() -> None:
    """Each of these has none for as long as its two models are equal."""
    ids = torch.tensor([[5, 3, 8, 250]])
    pairs: list[tuple[Any, Any, str, list[Any]]] = [
        (peft.DeftConfig, {}, "init_scale", [1.0, 7.0]),
        (peft.HiraConfig, {"r": 4}, "rank_pattern", [{}, {"q_proj": 2}]),
        (peft.OFTConfig, {"oft_block_size": 8}, "module_dropout", [0.0, 0.5]),
        (peft.PsoftConfig, {"r": 4}, "psoft_alpha", [4, 64]),
    ]
    for kind, fields, name, values in pairs:
        found = []
        for value in values:
            torch.manual_seed(0)
            config = kind(**fields, **{name: value}, target_modules=["q_proj", "v_proj"])
            model = peft.get_peft_model(tiny.llama(), config)
            fill(model)
            torch.manual_seed(0)
            found.append(logits(model.train(), ids))
        torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_peft_is_kept_from_compiling_for_boft(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.boft import layer
    from torch.utils import cpp_extension

    monkeypatch.setattr(layer, "_FBD_CUDA", None)
    monkeypatch.setattr(cpp_extension, "load", lambda **_: pytest.fail("something was compiled"))
    put("boft")


def test_biases_that_peft_trains_stay_when_the_adapter_is_off() -> None:
    config = peft.VeraConfig(r=4, bias="vera_only", target_modules=["q_proj"])
    base, ids = tiny.qwen2().eval(), torch.tensor([[5, 6, 7, 8]])
    before = logits(base, ids)
    model = peft.get_peft_model(base, config).eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name.endswith("base_layer.bias"):
            parameter.data.add_(1.0)
    with pytest.warns(UserWarning, match="does not produce the same output"), model.disable_adapter():
        assert not torch.equal(logits(model, ids), before)


# No setting is decoration.

# What each is changed to, and what goes with it, where the other value of its type or twice the number will not do.
CHANGED: dict[tuple[str, str], dict[str, Any]] = {
    ("adamss", "random_seed"): {"random_seed": 9, "r": 3},
    ("adaption_prompt", "adapter_layers"): {"adapter_layers": 1},
    ("boft", "boft_block_num"): {"boft_block_num": 4},
    ("c3a", "init_weights"): {"init_weights": "gaussian"},
    ("cartridge", "num_frozen_tokens"): {"num_frozen_tokens": 2},
    ("deft", "alpha"): {"alpha": 3},
    ("glora", "config_A_B"): {"config_A_B": "vector"},
    ("glora", "config_C"): {"config_C": "none"},
    ("glora", "config_D_E"): {"config_D_E": "none"},
    ("hira", "init_weights"): {"init_weights": "gaussian"},
    ("miss", "init_weights"): {"init_weights": "bat"},
    ("miss", "mini_r"): {"init_weights": "mini", "mini_r": 4},
    ("oft", "r"): {"r": 2},
    ("oft", "oft_block_size"): {"oft_block_size": 4},
    ("oft", "eps"): {"coft": True, "eps": 1e-2},
    ("osf", "effective_rank"): {"effective_rank": 5},
    ("psoft", "random_seed"): {"psoft_svd": "lowrank", "random_seed": 9, "psoft_svd_lowrank_niter": 0},
    ("psoft", "psoft_svd_lowrank_niter"): {"psoft_svd": "lowrank", "psoft_svd_lowrank_niter": 0},
    ("psoft", "num_cayley_neumann_terms"): {"use_cayley_neumann": True, "num_cayley_neumann_terms": 2},
    ("psoft", "cayley_neumann_eps"): {"use_cayley_neumann": True, "cayley_neumann_eps": 0.01},
    ("pvera", "generator_seed"): {"generator_seed": 4},
    ("shadow", "shadow_hidden_size"): {"shadow_hidden_size": 16},
    ("shadow", "shadow_num_attention_heads"): {"shadow_num_attention_heads": 2},
    ("shira", "random_seed"): {"random_seed": 4},
    ("supertuning", "sparsity"): {"sparsity": 0.8},
    ("supertuning", "lora_alpha"): {"r": 2, "lora_alpha": 3.0},
    ("supertuning", "lora_dropout"): {"r": 2, "lora_dropout": 0.5},
    ("tinylora", "init_weights"): {"init_weights": "uniform"},
    ("tinylora", "init_v_bound"): {"init_weights": "uniform", "init_v_bound": 0.5},
    ("tinylora", "weight_tying"): {"weight_tying": 1.0},
    ("trainable_tokens", "token_indices"): {"token_indices": [3, 6, 8]},
    ("vblora", "vector_length"): {"vector_length": 4},
    ("waveft", "wavelet_family"): {"wavelet_family": "db2"},
}
# Its ground, where that is not the small settings: what the change is compared with.
GROUND: dict[tuple[str, str], dict[str, Any]] = {
    ("oft", "eps"): {"coft": True},
    ("miss", "mini_r"): {"init_weights": "mini"},
    ("psoft", "random_seed"): {"psoft_svd": "lowrank", "psoft_svd_lowrank_niter": 0},
    ("psoft", "psoft_svd_lowrank_niter"): {"psoft_svd": "lowrank"},
    ("psoft", "num_cayley_neumann_terms"): {"use_cayley_neumann": True},
    ("psoft", "cayley_neumann_eps"): {"use_cayley_neumann": True},
    ("supertuning", "lora_alpha"): {"r": 2},
    ("supertuning", "lora_dropout"): {"r": 2},
    ("tinylora", "init_v_bound"): {"init_weights": "uniform"},
    ("adamss", "random_seed"): {"r": 3},
}
# AdaMSS's pruning has a test of its own, as have settings by target.
ELSEWHERE = {"use_asa", "asa_target_subspaces", "init_warmup", "final_warmup", "mask_interval", "asa_importance_beta",
             "asa_uncertainty_beta", "asa_schedule_exponent"}  # fmt: skip


def another(name: str, setting: str) -> dict[str, Any]:
    if (name, setting) in CHANGED:
        return CHANGED[name, setting]
    value = SMALL.get(name, {}).get(setting, GENERIC[name].settings.model_fields[setting].default)
    if setting.endswith("_pattern"):
        return {setting: {"v_proj": 0.3 if name == "osf" else 2}}
    if isinstance(value, bool):
        return {setting: not value}
    if isinstance(value, str):
        declared = json.dumps(GENERIC[name].settings.model_json_schema()["properties"][setting])
        return {setting: next(word for word in ("gelu", "pissa_init", "lowrank", "road_2", "qr") if word in declared)}
    return {setting: 0.5 if "dropout" in setting else 2 * value if value else 2}


def seen(name: str, folder: Path, **settings: Any) -> Any:
    """What can be seen of a model with these settings: what it computes before and after, and what it leaves."""
    torch.manual_seed(3)
    model, _, made = put(name, tiny.qwen2() if name == "glora" else None, **settings)
    ids = torch.tensor([[5, 3, 8, 250, 17, 9]])
    start = logits(model, ids)
    fill(model)
    torch.manual_seed(3)
    in_training = logits(model.train(), ids)
    GENERIC[name].save(model.eval(), made, BaseName("base", None), folder)
    from safetensors.torch import load_file

    saved = load_file(folder / "adapter_model.safetensors")
    shapes = {key: tuple(tensor.shape) for key, tensor in saved.items()}
    return [start.tolist(), logits(model, ids).tolist(), in_training.tolist(), sorted(shapes.items())]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Specified to not save:UserWarning")
@pytest.mark.filterwarnings("ignore:save_precomputed_indices=False:UserWarning")
@pytest.mark.parametrize(
    ("name", "setting"),
    [
        (name, setting)
        for name in TRAINED
        for setting in GENERIC[name].settings.model_fields
        if setting not in {"name", "targets", *ELSEWHERE}
    ],
)
def test_changing_a_setting_changes_what_is_seen(name: str, setting: str, tmp_path: Path) -> None:
    ground, change = GROUND.get((name, setting), {}), another(name, setting)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    if setting == "boft_block_num" or (name, setting) == ("oft", "r"):
        size = {"boft": "boft_block_size", "oft": "oft_block_size"}[name]
        change = {**change, size: 0}
    assert seen(name, tmp_path / "a", **ground) != seen(name, tmp_path / "b", **{**ground, **change})
