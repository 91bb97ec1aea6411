"""What happens when memory runs out, and that no more is computed than has to be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from peftctl.errors import MachineError, UsageError
from peftctl.objectives import OBJECTIVES, Loss
from peftctl.recipe import load
from tests import jobs, tiny


def runs_out_above(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Let a forward pass of more than so many tokens run out of memory, as a GPU does."""
    objective: Any = OBJECTIVES["cross_entropy"]
    right = type(objective).step

    def step(self: Any, model: Any, batch: Mapping[str, Any], **by: Any) -> Loss:
        made: Loss = right(self, model, batch, **by)
        if batch["inputs"]["input_ids"].numel() > tokens:
            made.sum.backward()  # half of the gradients are there when it happens
            raise torch.OutOfMemoryError("CUDA out of memory")
        return made

    monkeypatch.setattr(type(objective), "step", step)


def test_a_micro_batch_that_does_not_fit_is_halved_said_and_kept_in_the_resolved_recipe(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"micro_batch_tokens": 512, "log_every": 2}
    _, plain = jobs.train(tmp_path, tiny_model, "plain", train=train)
    runs_out_above(monkeypatch, 200)
    run, events = jobs.train(tmp_path, tiny_model, train=train)

    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert len(warnings) == 2
    assert warnings[0].startswith("step 1: out of memory with ")
    resolved = load(run / "resolved.yaml").train.micro_batch_tokens
    assert resolved is not None
    assert resolved <= 200
    assert warnings[1].endswith(f"train.micro_batch_tokens is {resolved} from here on, as resolved.yaml says")
    bound = 64 * torch.finfo(torch.float32).eps * max(jobs.losses(plain))
    assert jobs.losses(events) == pytest.approx(jobs.losses(plain), abs=bound)


def test_a_single_row_that_does_not_fit_ends_the_run_with_advice(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs_out_above(monkeypatch, 16)
    with pytest.raises(MachineError, match=r"out of memory: a row of [0-9]+ tokens did not fit") as caught:
        jobs.train(tmp_path, tiny_model)
    assert "train.gradient_checkpointing" in caught.value.hint
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_offloading_is_refused_where_there_is_nothing_to_offload_from(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(UsageError, match="offload_activations: has no effect on a CPU"):
        jobs.train(tmp_path, tiny_model, train={"gradient_checkpointing": True, "offload_activations": True})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to page out of")
@pytest.mark.parametrize("name", ["paged_adamw", "paged_adamw_8bit"])
def test_paged_optimizers_are_refused_without_a_gpu(tmp_path: Path, tiny_model: Path, name: str) -> None:
    with pytest.raises(MachineError, match=f"train.optimizer: {name} pages its state out of a GPU's memory"):
        jobs.train(tmp_path, tiny_model, train={"optimizer": name})


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("fast", [False, True])
def test_no_gradient_is_computed_below_the_lowest_adapter(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, checkpointing: bool, fast: bool
) -> None:
    from peftctl.train import loop

    seen: list[list[bool]] = []
    right = loop.run

    def watched(session: Any, events: Any, *others: Any) -> None:
        layers = session.model.get_base_model().model.layers
        needed: list[bool] = []
        for layer in layers:
            layer.register_forward_pre_hook(lambda module, args: needed.append(args[0].requires_grad))
        right(session, events, *others)
        seen.append(needed[: len(layers)])

    monkeypatch.setattr(loop, "run", watched)
    paths = dict.fromkeys(("packed", "loss", "lora", "norm"), fast)
    jobs.train(
        tmp_path,
        tiny_model,
        method={"targets": ["model.layers.1.*_proj"]},
        train={"gradient_checkpointing": checkpointing, "fast": paths, "max_steps": 1, "epochs": None},
    )
    assert seen == [[False, False]]


def no_compiler() -> str:
    from torch._inductor.exc import InvalidCxxCompiler

    raise InvalidCxxCompiler


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_whether_to_compile_is_decided_by_the_tokens_and_kept_in_the_resolved_recipe(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftctl.model import fast

    plain = load(jobs.train(tmp_path, tiny_model, "plain")[0] / "resolved.yaml")
    assert plain.train.fast.compile is False
    monkeypatch.setattr(fast, "COMPILED_TOKENS", 100)
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", no_compiler)
    without = load(jobs.train(tmp_path, tiny_model, "without")[0] / "resolved.yaml")
    assert without.train.fast.compile is False


# torch.compile's own machinery still uses what torch has deprecated.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiling_without_a_compiler_says_what_is_missing(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", no_compiler)
    with pytest.raises(MachineError, match=r"train\.fast\.compile: needs a C\+\+ compiler, and there is none"):
        jobs.train(tmp_path, tiny_model, train={"fast": {"compile": True}})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_compiler_that_fails_ends_the_run_with_what_turns_it_off(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._dynamo.exc import BackendCompilerFailed

    from peftctl.fast import install

    def failing(*arguments: Any, **keywords: Any) -> Any:
        raise BackendCompilerFailed("inductor", RuntimeError("no C++ compiler"), None)

    monkeypatch.setattr(install, "rms_norm", failing)
    with pytest.raises(MachineError, match=r"train\.fast\.compile: torch\.compile fails here: .*no C\+\+ compiler"):
        jobs.train(tmp_path, tiny_model, train={"fast": {"compile": True}})


def held(folder: Path, base: Path, patch: pytest.MonkeyPatch, name: str, **sections: Any) -> tuple[int, Path]:
    """What a run takes its weights, gradients and optimizer to hold, in bytes, before it chooses its micro-batches."""
    from peftctl.model import memory

    said: list[int] = []
    patch.setattr(memory, "micro_batch_tokens", lambda config, held, *rest: said.append(held) or 256)
    train = {"micro_batch_tokens": None, "max_steps": 1, "epochs": None, **sections.pop("train", {})}
    run, _ = jobs.train(folder, base, name, train=train, **sections)
    assert load(run / "resolved.yaml").train.micro_batch_tokens == 256
    return said[0], run


@pytest.mark.parametrize(
    ("optimizer", "each"),
    [("adamw", 12), ("sgd", 4), ("adafactor", 4)],
)
def test_gradients_and_moments_of_all_that_is_trained_are_counted(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, each: int
) -> None:
    """Beside the weights, of which a LoRA has some more, in float32."""
    disk = (tiny_model / "model.safetensors").stat().st_size
    train = {"optimizer": optimizer, "learning_rate": 1e-3}
    full, run = held(tmp_path, tiny_model, monkeypatch, "full", method={"name": "full"}, train=train)
    trained = jobs.manifest(run)["trainable_parameters"]
    assert full == disk + each * trained
    lora, run = held(tmp_path, tiny_model, monkeypatch, "lora", train=train)
    assert lora == disk + (4 + each) * jobs.manifest(run)["trainable_parameters"]
    assert jobs.manifest(run)["trainable_parameters"] < trained / 2


def test_weights_that_become_float32_are_counted_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.save(tmp_path / "model", tiny.llama().to(torch.bfloat16))
    disk = (base / "model.safetensors").stat().st_size
    model = {"name": str(base), "dtype": "bfloat16"}
    full, run = held(tmp_path, base, monkeypatch, "full", method={"name": "full"}, model=model)
    assert full == disk + (2 + 12) * jobs.manifest(run)["trainable_parameters"]


@pytest.mark.parametrize("name", ["adamw", "sgd", "adafactor"])
def test_an_optimizer_keeps_what_it_is_said_to_keep(name: Any) -> None:
    from peftctl.recipe.schema import TrainSettings
    from peftctl.train.optim import build_optimizer, training_bytes

    weight = torch.nn.Parameter(torch.randn(300, 200))
    settings = TrainSettings(optimizer=name, learning_rate=1e-3)
    optimizer = build_optimizer(settings, [(1.0, weight)])
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    kept = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    taken = sum(each.numel() * each.element_size() for each in [weight.grad, *kept])
    assert training_bytes(settings, weight.numel()) == pytest.approx(taken, rel=0.02)
