"""Each method through the whole job on a tiny model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import peftctl
from peftctl import atomic
from peftctl.errors import UsageError
from peftctl.generate import Sampling, generate
from peftctl.methods import METHODS
from peftctl.model import load
from peftctl.recipe import load as load_recipe
from peftctl.tasks import Layout
from tests import jobs, tiny

# Settings that keep it small, and a rate at which a random model learns in nine steps.
KINDS: dict[str, tuple[dict[str, Any], float]] = {
    "lora": ({"rank": 4}, 1e-2),
    "ia3": ({}, 1e-1),
    "adalora": ({"rank": 4}, 5e-2),
    "loha": ({"rank": 4}, 2e-2),
    "lokr": ({"rank": 2}, 2e-2),
    "prompt_tuning": ({"tokens": 4}, 1e-1),
    "p_tuning": ({"tokens": 4, "hidden": 16}, 2e-2),
    "prefix_tuning": ({"tokens": 4}, 5e-1),
    "ln_tuning": ({}, 1e-1),
    "bitfit": ({}, 1e-1),
    "full": ({}, 1e-2),
}
DROPPED = {
    "lora": {"dropout": 0.2},
    "adalora": {"dropout": 0.2},
    "loha": {"rank_dropout": 0.2, "module_dropout": 0.2},
    "lokr": {"rank_dropout": 0.2, "module_dropout": 0.2},
}
HELD_OUT = {"eval": {"path": "train.jsonl"}}


def train(folder: Path, base: Path, kind: str, name: str = "run", **sections: Any) -> tuple[Path, list[Any]]:
    settings, rate = KINDS[kind]
    base = _of_kind(folder, base, kind)
    sections["method"] = {"name": kind, **settings, **sections.get("method", {})}
    sections["train"] = {"learning_rate": rate, **sections.get("train", {})}
    return jobs.train(folder, base, name, **sections)


def _of_kind(folder: Path, base: Path, kind: str) -> Path:
    """``base``, or a model that the method can be used on."""
    if kind != "bitfit":
        return base
    biased = folder / "qwen2"
    return biased if biased.exists() else tiny.save(biased, tiny.qwen2())


def some(*quick: str, but: str = "") -> list[Any]:
    """Every method, those that are not to be quick as slow tests."""
    return [
        method if method in quick else pytest.param(method, marks=pytest.mark.slow) for method in KINDS if method != but
    ]


def test_every_method_with_a_file_of_its_own_is_trained_here() -> None:
    own = {name for name, method in METHODS.items() if type(method).__module__.rsplit(".", 1)[-1] == name}
    assert KINDS.keys() | {"xlora"} == own  # which has tests of its own, since it needs adapters


def greedy(loaded: Any, ids: list[int]) -> str:
    """The likeliest token eight times, each from a forward pass of its own over everything before it."""
    prompt = len(ids)
    for _ in range(8):
        row = torch.tensor([ids])
        with torch.no_grad():
            logits = loaded.model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits
        ids = [*ids, int(logits[0, -1].argmax())]
        if ids[-1] == loaded.tokenizer.eos_token_id:
            break
    text: str = loaded.tokenizer.decode(ids[prompt:], skip_special_tokens=True)
    return text


@pytest.mark.parametrize("method", KINDS)
def test_a_method_learns_is_verified_and_loads(method: str, tmp_path: Path, tiny_model: Path) -> None:
    run, events = train(tmp_path, tiny_model, method, data=HELD_OUT, train={"epochs": 4})
    facts = jobs.manifest(run)
    assert facts["method"]["name"] == method
    assert facts["verified"]["reload"]["verified"] == "yes"
    assert facts["verified"]["reload"]["max_difference"] == 0.0
    assert facts["trainable_parameters"] == next(e["trainable"] for e in events if e["event"] == "model")
    assert bool(facts["targets"]) is (METHODS[method].settings().wanted != ())
    loaded = peftctl.load(run)
    assert loaded.held_out()(loaded.model) == pytest.approx(facts["metrics"], rel=1e-5)
    with loaded.base():
        of_base = loaded.held_out().of_base()(loaded.model)["loss"]
        said_by_base = loaded.generate("odd even", max_new_tokens=8)
    plain = AutoModelForCausalLM.from_pretrained(_of_kind(tmp_path, tiny_model, method))
    collate = replace(loaded.collate, layout=Layout(0))
    assert of_base == pytest.approx(replace(loaded.held_out(), collate=collate)(plain)["loss"], rel=1e-5)
    assert facts["metrics"]["loss"] < 0.9 * of_base
    assert said_by_base == generate(plain, loaded.tokenizer, loaded.ids("odd even"), Sampling(8)) != ""
    assert loaded.generate("odd even", max_new_tokens=8) == greedy(loaded, loaded.ids("odd even"))


@pytest.mark.slow
@pytest.mark.parametrize("method", KINDS)
def test_a_method_s_own_rate_is_the_default_and_learns(method: str, tmp_path: Path, tiny_model: Path) -> None:
    run, events = train(
        tmp_path, tiny_model, method, data=HELD_OUT, eval={"every": 1}, train={"learning_rate": None, "epochs": 6}
    )
    assert load_recipe(run / "resolved.yaml").train.learning_rate == METHODS[method].learning_rate
    first = next(event for event in events if event["event"] == "eval")
    assert jobs.manifest(run)["metrics"]["loss"] < first["loss"]


@pytest.mark.parametrize("method", some("adalora", "lokr", "prefix_tuning"))
def test_evaluating_in_the_middle_changes_nothing(method: str, tmp_path: Path, tiny_model: Path) -> None:
    settings = DROPPED.get(method, {})
    plain, _ = train(tmp_path, tiny_model, method, "plain", method=settings, data=HELD_OUT)
    watched, events = train(tmp_path, tiny_model, method, "watched", method=settings, data=HELD_OUT, eval={"every": 1})
    assert sum(event["event"] == "eval" for event in events) == 3
    artifact = METHODS[method].artifact
    assert atomic.inventory(plain / artifact) == atomic.inventory(watched / artifact) != {}


@pytest.mark.parametrize("method", some("ia3", "lokr", "prompt_tuning", but="prefix_tuning"))
def test_checkpointing_gives_the_same_losses(method: str, tmp_path: Path, tiny_model: Path) -> None:
    settings = DROPPED.get(method, {})
    _, plain = train(tmp_path, tiny_model, method, "plain", method=settings)
    _, thrifty = train(tmp_path, tiny_model, method, "thrifty", method=settings, train={"gradient_checkpointing": True})
    assert jobs.losses(thrifty) == pytest.approx(jobs.losses(plain), rel=1e-5)


def test_checkpointing_a_prefix_is_refused_before_weights_are_loaded(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError) as refused:
        train(tmp_path, tiny_model, "prefix_tuning", train={"gradient_checkpointing": True})
    assert refused.value.message == (
        "method.name: prefix_tuning does not work with gradient checkpointing: RuntimeError: The size of tensor a (12) "
        "must match the size of tensor b (18) at non-singleton dimension 3; allowed: no checkpointing, or "
        "method lora, ia3 or adalora"
    )


@pytest.mark.parametrize("method", some("adalora", "loha", "p_tuning"))
def test_the_size_of_micro_batches_changes_rounding_alone(method: str, tmp_path: Path, tiny_model: Path) -> None:
    seen = []
    for tokens in (64, 1024):
        run, events = train(tmp_path, tiny_model, method, str(tokens), train={"micro_batch_tokens": tokens})
        seen.append((jobs.losses(events), [event["grad_norm"] for event in events if event["event"] == "step"]))
        assert jobs.manifest(run)["steps"] == 3
    # Three steps of AdamW, which makes a whole step of a gradient that is rounding alone.
    assert seen[0][0] == pytest.approx(seen[1][0], rel=1e-4)
    assert seen[0][1] == pytest.approx(seen[1][1], rel=1e-3)
    assert seen[0][0][0] == pytest.approx(seen[1][0][0], rel=1e-6)


# What each method makes of 16 bits is in tests/unit; AdaLoRA alone is saved in another form by peft's own choice.
@pytest.mark.parametrize("method", some("adalora"))
def test_a_bfloat16_base_trains_too(method: str, tmp_path: Path, tiny_model: Path) -> None:
    run, events = train(
        tmp_path, tiny_model, method, model={"dtype": "bfloat16"}, data=HELD_OUT, eval={"every": 1}, train={"epochs": 4}
    )
    first = next(event for event in events if event["event"] == "eval")
    assert jobs.manifest(run)["metrics"]["loss"] < 0.9 * first["loss"]
    [weights] = (run / METHODS[method].artifact).glob("*.safetensors")
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.float32}


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning"])
def test_what_stands_before_rows_leaves_them_less_room(method: str, tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "gpt2", tiny.gpt2())
    answer = {"role": "assistant", "content": "odd " * 200}
    tiny.jsonl(tmp_path / "train.jsonl", [{"messages": [{"role": "user", "content": "say it"}, answer]}] * 4)
    data = {"overlong": "truncate_end"}
    run, _ = train(tmp_path, base, method, data=data, method={"tokens": 20}, train={"micro_batch_tokens": 1024})
    assert load_recipe(run / "resolved.yaml").data.max_length == 512 - 20
    loaded = peftctl.load(run)
    assert loaded.room([5] * 490) == 2
    assert isinstance(loaded.generate("a" * 490, max_new_tokens=100), str)
    with pytest.raises(UsageError, match=r"found 492 tokens\); allowed: under 492"):
        loaded.room([5] * 492)


# AdaLoRA.


def ranks(run: Path) -> list[int]:
    """The numerical rank of each layer's update, from the file alone."""
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    found = []
    for name in tensors:
        if name.endswith("lora_E"):
            p, e, q = (tensors[name.replace("lora_E", f"lora_{part}")].double() for part in "BEA")
            values = torch.linalg.svdvals(p @ torch.diag(e[:, 0]) @ q)
            found.append(int((values > 1e-9 * values.max()).sum()) if e.any() else 0)
            assert int(torch.count_nonzero(e)) == found[-1]
    return found


@pytest.mark.parametrize(
    ("settings", "steps"),
    [({}, 12), ({"settle": 0.0}, 12), ({}, 3), ({"start": 0.0, "settle": 0.0}, 2), ({"initial_rank": 3}, 4)],
)
def test_adalora_ends_at_its_rank_on_average(
    settings: dict[str, Any], steps: int, tmp_path: Path, tiny_model: Path
) -> None:
    run, _ = train(
        tmp_path, tiny_model, "adalora", method={"rank": 2, "initial_rank": 6, **settings},
        train={"max_steps": steps, "epochs": None},
    )  # fmt: skip
    found = ranks(run)
    assert len(found) == 14
    assert sum(found) == 14 * 2
    # Saved with their zeros: read back, plain peft gives the trained bits.
    assert json.loads((run / "adapter" / "adapter_config.json").read_text())["rank_pattern"] is None
    assert jobs.manifest(run)["verified"]["reload"]["max_difference"] == 0.0


def test_adalora_s_ranks_fall_where_and_when_the_recipe_says(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.adalora import AdaLoraModel

    seen = []
    allocate = AdaLoraModel.update_and_allocate

    def watched(model: Any, step: int) -> None:
        allocate(model, step)
        seen.append(sum(int(torch.count_nonzero(p)) for name, p in model.named_parameters() if "lora_E" in name))

    monkeypatch.setattr(AdaLoraModel, "update_and_allocate", watched)
    method = {"rank": 2, "initial_rank": 6, "start": 0.25, "settle": 0.25}
    train(tmp_path, tiny_model, "adalora", method=method, train={"max_steps": 12, "epochs": None})
    assert len(seen) == 12
    assert seen[:4] == [14 * 6] * 4
    assert seen[4] < 14 * 6
    assert seen == sorted(seen, reverse=True)
    assert seen[7] > 14 * 2
    assert seen[9:] == [14 * 2] * 3


def test_the_reported_losses_are_without_the_penalty(tmp_path: Path, tiny_model: Path) -> None:
    heard = {}
    for weight in (0.0, 1e5):
        # At this rate nothing moves, so all that the penalty could change is what is said.
        run, events = train(
            tmp_path, tiny_model, "adalora", f"run{weight}", method={"orthogonal": weight}, data=HELD_OUT,
            eval={"every": 1}, train={"learning_rate": 1e-12},
        )  # fmt: skip
        measured = [event["loss"] for event in events if event["event"] == "eval"]
        heard[weight] = (jobs.losses(events), measured, jobs.manifest(run)["metrics"]["loss"])
    assert heard[0.0][0] == pytest.approx(heard[1e5][0], rel=1e-6)
    assert heard[0.0][1] == pytest.approx(heard[1e5][1], rel=1e-6)
    assert heard[0.0][2] == pytest.approx(heard[1e5][2], rel=1e-6)
    assert max(heard[1e5][0] + heard[1e5][1]) < 20


def test_the_penalty_is_in_the_gradient_once_a_step(tmp_path: Path, tiny_model: Path) -> None:
    norms = {}
    for weight, tokens in ((0.0, 1024), (1.0, 1024), (2.0, 1024), (2.0, 64)):
        _, events = train(
            tmp_path, tiny_model, "adalora", f"run{weight}-{tokens}", method={"orthogonal": weight},
            train={"micro_batch_tokens": tokens, "learning_rate": 1e-12},
        )  # fmt: skip
        norms[weight, tokens] = next(event["grad_norm"] for event in events if event["event"] == "step")
    # At the start E is zero: the loss has a gradient for E alone, the penalty for P and Q alone.
    once = norms[1.0, 1024] ** 2 - norms[0.0, 1024] ** 2
    assert once > 1e-4
    assert norms[2.0, 1024] ** 2 - norms[0.0, 1024] ** 2 == pytest.approx(4 * once, rel=1e-3)
    assert norms[2.0, 64] == pytest.approx(norms[2.0, 1024], rel=1e-4)


def test_a_run_too_short_for_adalora_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UsageError) as refused:
        train(tmp_path, tiny_model, "adalora", train={"max_steps": 1, "epochs": None})
    assert refused.value.message == ("method.start, method.settle: leave no step for ranks to fall in a run of 1 steps")
    assert not (tmp_path / "run" / "adapter").exists()


def test_an_initial_rank_below_the_last_is_refused(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UsageError) as refused:
        train(tmp_path, tiny_model, "adalora", method={"rank": 4, "initial_rank": 3})
    assert refused.value.message == (
        "method.initial_rank: below the rank that is to be left (found 3); allowed: at least 4"
    )
