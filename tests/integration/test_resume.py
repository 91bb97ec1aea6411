"""Stopped or killed anywhere, a run goes on to the same bits."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from peftctl.atomic import inventory
from peftctl.errors import DataError, DivergedError, MachineError, StoppedError, UsageError, VerificationError
from peftctl.events import Events
from peftctl.methods import OWN, experts
from peftctl.recipe import load, resolve
from peftctl.reproduce import reproduce
from peftctl.run import open_run
from peftctl.train import checkpoint, job, loop, resume, saver
from tests import jobs, tiny
from tests.integration.test_generic import SMALL

# 30 steps of 3 rows; the last one is not full.
LONG: dict[str, Any] = {
    "epochs": None,
    "max_steps": 30,
    "batch_size": 3,
    "micro_batch_tokens": 512,
    "learning_rate": 5e-3,
}
SAVED = {"save_every": 1, "keep_checkpoints": 100}
QUANTISED = {"dtype": "float32", "quantization": {"bits": 4}}
CASES: dict[str, dict[str, Any]] = {
    "lora": {"method": {"name": "lora", "rank": 4, "dropout": 0.2}},
    "lora, accumulating": {"method": {"name": "lora", "rank": 4, "dropout": 0.2}, "train": {"micro_batch_tokens": 32}},
    "lora, padded": {"method": {"name": "lora", "rank": 4, "dropout": 0.2}, "train": {"fast": {"packed": False}}},
    "lora, padded, accumulating": {
        "method": {"name": "lora", "rank": 4, "dropout": 0.2},
        "train": {"fast": {"packed": False}, "micro_batch_tokens": 32},
    },
    "lora, plain": {
        "method": {"name": "lora", "rank": 4, "dropout": 0.2},
        "train": {"fast": {"packed": False, "loss": False, "lora": False, "norm": False}, "log_every": 7},
    },
    "adalora": {"method": {"name": "adalora", "rank": 2, "initial_rank": 4}},
    "adalora, accumulating": {"method": {"name": "adalora", "rank": 2}, "train": {"micro_batch_tokens": 32}},
    "prompt_tuning": {"method": {"name": "prompt_tuning", "tokens": 4}},
    "prompt_tuning, accumulating": {
        "method": {"name": "prompt_tuning", "tokens": 4},
        "train": {"micro_batch_tokens": 32},
    },
    "qlora": {"model": QUANTISED, "method": {"name": "lora", "rank": 4, "dropout": 0.2}},
    "qlora, accumulating": {
        "model": QUANTISED,
        "method": {"name": "lora", "rank": 4, "dropout": 0.2},
        "train": {"micro_batch_tokens": 32},
    },
    "full": {"method": {"name": "full"}},
    "sgd": {"method": {"name": "lora", "rank": 4}, "train": {"optimizer": "sgd"}},
    "adafactor": {"method": {"name": "lora", "rank": 4}, "train": {"optimizer": "adafactor"}},
    "adamw_8bit": {"method": {"name": "lora", "rank": 4}, "train": {"optimizer": "adamw_8bit"}},
    "two rates": {"method": {"name": "lora", "rank": 4, "loraplus": 16.0}},
    "streamed": {"method": {"name": "lora", "rank": 4}, "data": {"streaming": True}},
}


def sections(case: dict[str, Any]) -> dict[str, Any]:
    return {
        **case,
        "train": {**LONG, **SAVED, **case.get("train", {})},
        "data": {"train": "train.jsonl", **case.get("data", {})},
    }


@pytest.mark.parametrize("name", CASES)
def test_it_ends_with_the_same_bits_after_a_stop_at_any_step(
    tmp_path: Path, tiny_model: Path, name: str, pytestconfig: pytest.Config
) -> None:
    whole, _ = jobs.train(tmp_path, tiny_model, "whole", **sections(CASES[name]))
    expected = jobs.bits(whole)
    for step in range(1, 31) if pytestconfig.getoption("--whole") else (1, 14, 29):
        copy = jobs.stopped_after(whole, step, tmp_path / f"after-{step}")
        run, heard = jobs.train(tmp_path, tiny_model, copy.name, **sections(CASES[name]))
        assert [event["step"] for event in heard if event["event"] == "resumed"] == [step]
        assert jobs.bits(run) == expected, step
        shutil.rmtree(run)


# AdaMSS with its subspaces dropped on the way; what has to be said; experts for X-LoRA.
METHOD: dict[str, dict[str, Any]] = {
    **SMALL,
    "adamss": {
        "r": 8, "num_subspaces": 2, "use_asa": True, "init_warmup": 1, "final_warmup": 10, "mask_interval": 2,
        "asa_target_subspaces": 6,
    },
    "xlora": {"adapters": ["first", "second"], "depth": 2, "hidden": 8, "dropout": 0.2},
}  # fmt: skip


@pytest.mark.parametrize("name", [*OWN, *SMALL])
def test_every_method_goes_on_to_the_same_bits(tmp_path: Path, tiny_model: Path, name: str) -> None:
    base = tiny.save(tmp_path / "gpt2", tiny.gpt2()) if name == "bitfit" else tiny_model
    for seed, expert in enumerate(METHOD["xlora"]["adapters"] if name == "xlora" else ()):
        shape = torch.Generator().manual_seed(seed)
        matrices = {"model.layers.0.self_attn.q_proj": (torch.randn(2, 32, generator=shape), torch.ones(32, 2) / 8)}
        experts.write(tmp_path / expert, {"r": 2, "lora_alpha": 2}, matrices, task_type="CAUSAL_LM")
    case = {"method": {"name": name, **METHOD.get(name, {})}, "train": {"max_steps": 12, "batch_size": 3}}
    whole, _ = jobs.train(tmp_path, base, "whole", **sections(case))
    jobs.stopped_after(whole, 7, tmp_path / "half")
    run, _ = jobs.train(tmp_path, base, "half", **sections(case))
    assert jobs.bits(run) == jobs.bits(whole)


def stop_at(step: int, number: int = signal.SIGTERM, kind: str = "step") -> Any:
    """A listener that sends this process a signal when it hears of ``step``."""

    def listen(event: Any) -> None:
        if event["event"] == kind and event.get("step", step) == step:
            os.kill(os.getpid(), number)

    return listen


def run_with(folder: Path, base: Path, name: str, *listeners: Any, how: str = "auto", **sections: Any) -> Path:
    text = jobs.recipe_text(folder, base, name, **sections)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return job.train(load(path), text, Events(*listeners), how)


@pytest.fixture
def terminable() -> Iterator[None]:
    """A process that a signal reaches, whatever started the tests; and one that they do not end."""
    before = {each: signal.signal(each, lambda *_: None) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.quick
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
@pytest.mark.usefixtures("terminable")
def test_a_signal_stops_after_the_step_and_the_same_command_goes_on(
    tmp_path: Path, tiny_model: Path, number: int, code: int
) -> None:
    case = {"train": {**LONG, "max_steps": 6}}
    expected = jobs.bits(jobs.train(tmp_path, tiny_model, "whole", **case)[0])
    with pytest.raises(StoppedError, match=r"after step 3 of 6: saved in") as stopped:
        run_with(tmp_path, tiny_model, "run", stop_at(3, number), **case)
    assert stopped.value.exit_code == code
    assert not (tmp_path / "run" / "adapter").exists()
    run = run_with(tmp_path, tiny_model, "run", **case)
    assert jobs.bits(run) == expected


@pytest.mark.parametrize("kind", ["data", "model", "fast"])
@pytest.mark.usefixtures("terminable")
def test_a_signal_before_the_first_step_leaves_nothing_in_the_way(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    with pytest.raises(StoppedError) as stopped:
        run_with(tmp_path, tiny_model, "run", stop_at(0, kind=kind))
    assert stopped.value.exit_code == 75
    run_with(tmp_path, tiny_model, "run")


@pytest.mark.usefixtures("terminable")
def test_a_signal_while_measuring_stops_that_and_it_comes_again(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = {"train": {**LONG, "max_steps": 6}, "data": {"eval": {"count": 4}}, "eval": {"every": 2}}
    expected = jobs.bits(jobs.train(tmp_path, tiny_model, "whole", **case)[0])
    from peftctl.evaluation.measure import Measurement

    plain = Measurement.__call__
    calls = []

    def measure(self: Measurement, model: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(self, model)

    monkeypatch.setattr(Measurement, "__call__", measure)
    with pytest.raises(StoppedError, match="after step 4"):
        run_with(tmp_path, tiny_model, "run", **case)
    run = run_with(tmp_path, tiny_model, "run", **case)
    assert jobs.bits(run) == expected


@pytest.mark.parametrize("kind", ["stage", "eval"])
@pytest.mark.usefixtures("terminable")
def test_a_signal_while_publishing_or_in_the_last_evaluation_costs_no_step(
    tmp_path: Path, tiny_model: Path, kind: str
) -> None:
    case = {"train": {**LONG, "max_steps": 4}, "data": {"eval": {"count": 4}}}
    expected = jobs.bits(jobs.train(tmp_path, tiny_model, "whole", **case)[0])

    def listen(event: Any) -> None:
        if event["event"] == kind and event.get("name") in (None, "publish" if kind == "stage" else None):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError):
        run_with(tmp_path, tiny_model, "run", listen, **case)
    heard: list[Any] = []
    run = run_with(tmp_path, tiny_model, "run", heard.append, **case)
    assert not [event for event in heard if event["event"] == "step"]
    assert jobs.bits(run) == expected


def test_it_stops_by_its_own_time_after_a_step_at_least(tmp_path: Path, tiny_model: Path) -> None:
    expected = jobs.bits(jobs.train(tmp_path, tiny_model, "whole", train={**LONG, "max_steps": 3})[0])
    case = {"train": {**LONG, "max_steps": 3, "max_time": "0s"}}
    for step in (1, 2, 3):
        with pytest.raises(StoppedError, match=f"stopped by train.max_time: 0s after step {step} of 3: saved in"):
            run_with(tmp_path, tiny_model, "run", **case)
    run = run_with(tmp_path, tiny_model, "run", train={**LONG, "max_steps": 3, "max_time": "1h"})
    assert jobs.bits(run) == expected


@pytest.fixture
def half(tmp_path: Path, tiny_model: Path) -> Path:
    """A run of 6 steps that was killed after the fifth, with all its checkpoints."""
    whole, _ = jobs.train(tmp_path, tiny_model, "whole", train={**LONG, **SAVED, "max_steps": 6})
    return jobs.stopped_after(whole, 5, tmp_path / "run")


def go_on(folder: Path, base: Path, how: str = "auto", **sections: Any) -> tuple[Path, list[dict[str, Any]]]:
    heard: list[dict[str, Any]] = []
    values = {"train": {**LONG, **SAVED, "max_steps": 6}, **sections}
    run = run_with(folder, base, "run", lambda event: heard.append(dict(event)), how=how, **values)
    return run, heard


def test_another_recipe_is_refused_with_what_differs(tmp_path: Path, tiny_model: Path, half: Path) -> None:
    with pytest.raises(UsageError) as refused:
        go_on(tmp_path, tiny_model, train={**LONG, "max_steps": 6, "learning_rate": 1e-3}, method={"rank": 8})
    assert "method.rank: 4 then, 8 now" in refused.value.message
    assert "train.learning_rate: 0.005 then, 0.001 now" in refused.value.message
    assert "save_every" not in refused.value.message
    assert "--resume never" in refused.value.hint


def test_length_cadence_and_logs_may_be_others(tmp_path: Path, tiny_model: Path, half: Path) -> None:
    changed = {**LONG, "max_steps": 8, "log_every": 2, "save_every": 3, "keep_checkpoints": 1, "max_time": "9h"}
    run, heard = go_on(tmp_path, tiny_model, train=changed)
    assert jobs.manifest(run)["steps"] == 8
    assert [event["step"] for event in heard if event["event"] == "step"] == [6, 8]
    assert [path.name for path in checkpoint.all_of(run)] == ["step-000008"]
    assert any("learning rate follows the new length" in event.get("message", "") for event in heard)


def test_a_run_that_is_to_be_shorter_than_it_is_is_refused(tmp_path: Path, tiny_model: Path, half: Path) -> None:
    with pytest.raises(UsageError, match="is to have 3 steps"):
        go_on(tmp_path, tiny_model, train={**LONG, **SAVED, "max_steps": 3})
    go_on(tmp_path, tiny_model)


def test_data_that_has_changed_is_refused(tmp_path: Path, tiny_model: Path, half: Path) -> None:
    tiny.jsonl(tmp_path / "train.jsonl", tiny.chats(25))
    with pytest.raises(DataError, match="is not the file that the recipe pins"):
        go_on(tmp_path, tiny_model)
    assert checkpoint.all_of(half)


def test_what_comes_to_nothing_takes_nothing_away(tmp_path: Path, tiny_model: Path, half: Path) -> None:
    before = inventory(half)
    rows = (tmp_path / "train.jsonl").read_bytes()
    tiny.jsonl(tmp_path / "train.jsonl", tiny.chats(25))
    with pytest.raises(DataError):
        go_on(tmp_path, tiny_model, how=str(checkpoint.path_of(half, 2)))
    (tmp_path / "train.jsonl").write_bytes(rows)
    with pytest.raises(UsageError, match="is not the base model"):
        run_with(
            tmp_path, tiny.save(tmp_path / "other", tiny.llama(seed=5)), "run", train={**LONG, **SAVED, "max_steps": 6}
        )
    assert inventory(half) == before
    run, heard = go_on(tmp_path, tiny_model)
    assert [event["step"] for event in heard if event["event"] == "resumed"] == [5]
    assert jobs.bits(run) == jobs.bits(tmp_path / "whole")


def test_a_finished_run_of_another_base_or_data_is_not_called_finished(tmp_path: Path, tiny_model: Path) -> None:
    case = {"train": {**LONG, "max_steps": 3}}
    run, _ = jobs.train(tmp_path, tiny_model, "run", **case)
    other = tiny.save(tmp_path / "other", tiny.llama(seed=5))
    with pytest.raises(UsageError, match=r"holds a finished run(.|\n)*model.name: "):
        jobs.train(tmp_path, other, "run", **case)
    tiny.jsonl(tmp_path / "more.jsonl", tiny.chats(9))
    with pytest.raises(UsageError, match=r"holds a finished run(.|\n)*data.train\[0\].path: "):
        jobs.train(tmp_path, tiny_model, "run", data={"train": "more.jsonl"}, **case)
    for damage in ("{", "[]", "{}"):
        (run / "manifest.json").write_text(damage)
        with pytest.raises(UsageError, match="holds a finished run"):
            jobs.train(tmp_path, tiny_model, "run", **case)


def test_what_no_hash_tells_may_not_be_elsewhere(tmp_path: Path, tiny_model: Path, half: Path) -> None:
    """A hub model or data set is known by its name: another one is another recipe."""
    path = checkpoint.path_of(half, 5) / "resolved.yaml"
    text = path.read_text()
    recipe = resolve.resolve(load(tmp_path / "whole.yaml"))
    moved = recipe.with_settings("model", "", name="owner/other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "verify", lambda _: None)
        resume._same(moved, path.parent, "x")  # a folder may be elsewhere
        path.write_text(text.replace("model:\n", "model:\n  revision: c0ffee\n", 1))
        with pytest.raises(UsageError, match=r"model.name: "):
            resume._same(moved, path.parent, "x")


def test_another_base_is_refused(tmp_path: Path, half: Path) -> None:
    base = tiny.save(tmp_path / "base")
    shutil.copytree(base, tmp_path / "other")
    whole, _ = jobs.train(tmp_path, base, "first", train={**LONG, **SAVED, "max_steps": 3})
    shutil.rmtree(tmp_path / "run")
    jobs.stopped_after(whole, 2, tmp_path / "run")
    tiny.save(base, tiny.llama(seed=5))
    with pytest.raises(UsageError, match="not the base model"):
        go_on(tmp_path, base, train={**LONG, **SAVED, "max_steps": 3})


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, tiny_model: Path, half: Path) -> None:
    expected = jobs.bits(tmp_path / "whole")
    file = checkpoint.path_of(half, 5) / "optimizer.safetensors"
    damage(file, len(file.read_bytes()) // 2)
    shutil.rmtree(checkpoint.path_of(half, 4) / checkpoint.MANIFEST, ignore_errors=True)
    (checkpoint.path_of(half, 4) / checkpoint.MANIFEST).unlink()
    run, heard = go_on(tmp_path, tiny_model)
    notes = [event["message"] for event in heard if event["event"] == "warning"]
    assert any("step-000005/optimizer.safetensors is damaged" in note for note in notes)
    assert any("step-000004: not complete: manifest.json is missing" in note for note in notes)
    assert [event["step"] for event in heard if event["event"] == "resumed"] == [3]
    assert jobs.bits(run) == expected
    assert (run / "checkpoints" / "past-step-000005").is_dir()


def test_where_no_checkpoint_is_intact_nothing_begins_anew_unasked(
    tmp_path: Path, tiny_model: Path, half: Path
) -> None:
    for path in checkpoint.all_of(half):
        (path / "trained.safetensors").unlink()
    with pytest.raises(VerificationError, match=r"none of the 5 checkpoints in .* is intact"):
        go_on(tmp_path, tiny_model)
    run, heard = go_on(tmp_path, tiny_model, how="never")
    assert not [event for event in heard if event["event"] == "resumed"]
    assert (run / "unfinished-1" / "checkpoints" / "step-000005").is_dir()
    assert jobs.bits(run) == jobs.bits(tmp_path / "whole")


def damage(file: Path, at: int) -> None:
    found = bytearray(file.read_bytes())
    found[at] ^= 0x20
    file.write_bytes(found)


def test_any_byte_any_file_any_end_is_detected(tmp_path: Path, half: Path) -> None:
    path = checkpoint.path_of(half, 5)
    checkpoint.verify(path)
    whole = {file.name: file.read_bytes() for file in path.iterdir()}
    assert set(whole) >= {
        "trained.safetensors",
        "optimizer.safetensors",
        "state.json",
        "resolved.yaml",
        "manifest.json",
    }
    for name, found in whole.items():
        file = path / name
        places = range(len(found)) if name == checkpoint.MANIFEST else {0, 9, len(found) // 3, len(found) - 1}
        for at in places:
            damage(file, at)
            with pytest.raises(VerificationError, match=name):
                checkpoint.verify(path)
            file.write_bytes(found)
        for cut in (b"", found[:-1], found + b"\n"):
            file.write_bytes(cut)
            with pytest.raises(VerificationError, match=name):
                checkpoint.verify(path)
        file.unlink()
        with pytest.raises(VerificationError, match=name):
            checkpoint.verify(path)
        file.write_bytes(found)
    (path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(VerificationError, match="is no part of the checkpoint"):
        checkpoint.verify(path)


def test_a_checkpoint_can_be_named(tmp_path: Path, tiny_model: Path, half: Path) -> None:
    run, heard = go_on(tmp_path, tiny_model, how=str(checkpoint.path_of(half, 2)))
    assert [event["step"] for event in heard if event["event"] == "resumed"] == [2]
    assert jobs.bits(run) == jobs.bits(tmp_path / "whole")


def test_a_finished_run_goes_on_for_longer_in_a_directory_of_its_own(tmp_path: Path, tiny_model: Path) -> None:
    longer = {**LONG, "max_steps": 6, "schedule": "constant", "warmup_ratio": 0.0}
    expected = jobs.bits(jobs.train(tmp_path, tiny_model, "whole", train=longer)[0])
    first, _ = jobs.train(tmp_path, tiny_model, "first", train={**longer, "max_steps": 4})
    with pytest.raises(UsageError, match="of another length"):
        run_with(tmp_path, tiny_model, "first", train=longer)
    run, heard = go_on(tmp_path, tiny_model, how=str(first), train=longer)
    assert [event["step"] for event in heard if event["event"] == "resumed"] == [4]
    found = jobs.bits(run)
    assert (found["artifact"], found["checkpoint"]) == (expected["artifact"], expected["checkpoint"])


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, tiny_model: Path) -> None:
    case = {"train": {**LONG, "max_steps": 3}}
    run, _ = jobs.train(tmp_path, tiny_model, "run", **case)
    before = inventory(run)
    _, heard = jobs.train(tmp_path, tiny_model, "run", **case)
    assert heard[0]["message"] == f"{run} is finished: there is nothing to do"
    assert (heard[1]["event"], heard[1]["path"], len(heard)) == ("done", str(run), 2)
    assert inventory(run) == before
    with pytest.raises(UsageError, match=r"holds a finished run(.|\n)*method.rank: 4 then, 8 now"):
        jobs.train(tmp_path, tiny_model, "run", method={"rank": 8}, **case)
    with pytest.raises(UsageError, match="holds a finished run"):
        run_with(tmp_path, tiny_model, "run", how="never", **case)


def test_a_longer_run_that_is_stopped_goes_on_with_the_same_command(
    tmp_path: Path, tiny_model: Path, terminable: None
) -> None:
    longer = {**LONG, "max_steps": 7}
    first, _ = jobs.train(tmp_path, tiny_model, "first", train={**LONG, "max_steps": 4})
    expected = jobs.bits(run_with(tmp_path, tiny_model, "whole", how=str(first), train=longer))
    with pytest.MonkeyPatch.context() as patch:  # a signal before the first step of its own
        patch.setattr(loop, "_measure", lambda *_: bool(os.kill(os.getpid(), signal.SIGTERM)))
        with pytest.raises(StoppedError, match=r"after step 4 of 7: saved in .*/run/checkpoints/"):
            run_with(tmp_path, tiny_model, "run", how=str(first), train=longer)
    for step in (5, 6):
        with pytest.raises(StoppedError, match=rf"after step {step} of 7: saved in .*/run/checkpoints/"):
            run_with(tmp_path, tiny_model, "run", how=str(first), train={**longer, "max_time": "0s"})
    found = jobs.bits(run_with(tmp_path, tiny_model, "run", how=str(first), train=longer))
    assert (found["artifact"], found["checkpoint"]) == (expected["artifact"], expected["checkpoint"])
    resolved = (tmp_path / "run" / "resolved.yaml").read_text()
    assert resolved.startswith("# Every choice made, at the end: up to step 4 the run was to have 4 steps.")
    with pytest.raises(UsageError, match="was to have 4 steps until it had made 4"):
        reproduce(open_run(tmp_path / "run"), None, Events())


def test_a_checkpoint_of_another_run_is_needed_once(tmp_path: Path, tiny_model: Path) -> None:
    first, _ = jobs.train(tmp_path, tiny_model, "first", train={**LONG, "max_steps": 3})
    with pytest.raises(StoppedError):
        run_with(tmp_path, tiny_model, "run", how=str(first), train={**LONG, "max_steps": 6, "max_time": "0s"})
    shutil.rmtree(first)
    run = run_with(tmp_path, tiny_model, "run", how=str(first), train={**LONG, "max_steps": 6})
    assert jobs.manifest(run)["steps"] == 6


def test_who_decided_each_value_is_not_forgotten(tmp_path: Path, tiny_model: Path, half: Path) -> None:
    run, _ = go_on(tmp_path, tiny_model)
    texts = [(path / "resolved.yaml").read_text() for path in (run, tmp_path / "whole")]
    said = [[line.partition("#")[2] for line in text.splitlines()] for text in texts]
    assert said[0] == said[1]
    assert {" default", " matched in the model", " whole.yaml"} <= set(said[0])


def test_the_log_keeps_what_it_says_of_the_checkpoint(tmp_path: Path, tiny_model: Path, half: Path) -> None:
    run, _ = go_on(tmp_path, tiny_model)
    assert [event["step"] for event in jobs.events(run) if event["event"] == "saved"] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_that_was_damaged_is_not_called_finished(tmp_path: Path, tiny_model: Path) -> None:
    case = {"train": {**LONG, "max_steps": 3}}
    run, _ = jobs.train(tmp_path, tiny_model, "run", **case)
    expected = jobs.bits(run)
    (run / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(VerificationError, match="is missing, which the run's manifest names") as refused:
        jobs.train(tmp_path, tiny_model, "run", **case)
    assert "publishes again, from step-000003" in refused.value.hint
    (run / "manifest.json").unlink()
    _, heard = jobs.train(tmp_path, tiny_model, "run", **case)
    assert not [event for event in heard if event["event"] == "step"]
    assert jobs.bits(run) == expected


def test_checkpoints_that_are_gone_are_missed(tmp_path: Path, tiny_model: Path, half: Path) -> None:
    shutil.rmtree(half / "checkpoints")
    with pytest.raises(VerificationError, match=r"the checkpoints of .* are gone") as refused:
        go_on(tmp_path, tiny_model)
    assert refused.value.hint == "`--resume never` starts over"
    go_on(tmp_path, tiny_model, how="never")


def test_base_and_data_may_move(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    tiny.jsonl(tmp_path / "train.jsonl", tiny.chats(24))
    case = {"train": {**LONG, **SAVED, "max_steps": 4}}
    whole, _ = jobs.train(tmp_path, base, "whole", **case)
    jobs.stopped_after(whole, 2, tmp_path / "run")
    (tmp_path / "train.jsonl").rename(tmp_path / "moved.jsonl")
    tiny.jsonl(tmp_path / "train.jsonl", tiny.chats(5))
    run = run_with(tmp_path, base.rename(tmp_path / "there"), "run", data={"train": "moved.jsonl"}, **case)
    assert jobs.bits(run) == jobs.bits(whole)


def test_a_base_may_be_named_by_where_the_recipe_is(tmp_path: Path) -> None:
    tiny.save(tmp_path / "model")
    base = Path("..", tmp_path.name, "model")
    settings = {"train": {**LONG, **SAVED, "max_steps": 4}}
    whole = jobs.train(tmp_path, base, "whole", **settings)[0]
    jobs.stopped_after(whole, 2, tmp_path / "half")
    assert jobs.bits(jobs.train(tmp_path, base, "half", **settings)[0]) == jobs.bits(whole)


def test_resume_takes_nothing_else(tmp_path: Path, tiny_model: Path, half: Path) -> None:
    shutil.rmtree(half / "checkpoints")
    (half / "metrics.jsonl").unlink()
    for how, said in (
        ("nowhere", "there is no .*nowhere"),
        (".", "neither a checkpoint nor a run"),
        ("", "says nothing"),
    ):
        with pytest.raises(UsageError, match=said):
            go_on(tmp_path, tiny_model, how=str(tmp_path / how) if how else "")
    copy = tmp_path / "copy"
    shutil.copytree(checkpoint.path_of(tmp_path / "whole", 5), copy / "checkpoints" / "step-000005")
    (copy / "checkpoints" / "step-000005" / "trained.safetensors").write_bytes(b"")
    for how in (copy, copy / "checkpoints", copy / "checkpoints" / "step-000005"):
        with pytest.raises(VerificationError, match="damaged"):
            go_on(tmp_path, tiny_model, how=str(how))
    with pytest.raises(UsageError, match="is of another recipe"):
        go_on(tmp_path, tiny_model, how=str(tmp_path / "whole"), method={"rank": 8})
    assert not (tmp_path / "run2").exists()


def test_the_best_is_published_and_kept(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from peftctl.evaluation.measure import Measurement

    losses = iter([3.0, 1.0, 2.0, 1.5])
    plain = Measurement.__call__

    def measure(self: Measurement, model: Any) -> Any:
        return {**plain(self, model), "loss": next(losses, 9.0)}

    monkeypatch.setattr(Measurement, "__call__", measure)
    case = {"data": {"eval": {"count": 4}}, "eval": {"every": 2, "best": True}}
    train = {**LONG, "max_steps": 8, "save_every": 1, "keep_checkpoints": 1}
    run, _ = jobs.train(tmp_path, tiny_model, "run", train=train, **case)
    assert jobs.manifest(run)["published_step"] == 4
    assert [path.name for path in checkpoint.all_of(run)] == ["step-000008", "step-000004"]

    from safetensors.torch import load_file

    published = load_file(run / "adapter" / "adapter_model.safetensors")
    best = load_file(checkpoint.path_of(run, 4) / "trained.safetensors")
    assert published
    for name, value in published.items():
        assert torch.equal(
            value, best[name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.")]
        )


def test_checkpoints_are_few_and_the_newest(tmp_path: Path, tiny_model: Path) -> None:
    seen: list[list[str]] = []

    def listen(event: Any) -> None:
        if event["event"] == "saved":
            seen.append(sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()))

    run_with(
        tmp_path, tiny_model, "run", listen, train={**LONG, "max_steps": 5, "save_every": 1, "keep_checkpoints": 3}
    )
    assert seen[-1] == [
        "step-000002",
        "step-000003",
        "step-000004",
        "step-000005",
    ]  # the oldest goes once it is written
    assert [path.name for path in checkpoint.all_of(tmp_path / "run")] == ["step-000005", "step-000004", "step-000003"]


def test_one_is_saved_by_the_clock(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "CLOCK", 0.0)
    _, heard = jobs.train(tmp_path, tiny_model, "run", train={**LONG, "max_steps": 3})
    assert [event["step"] for event in heard if event["event"] == "saved"] == [1, 2, 3]


def test_a_disk_without_room_is_said_before_training(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(saver.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(MachineError, match=r"has room for 1.0 kB, and") as refused:
        jobs.train(tmp_path, tiny_model, "run")
    assert "keep_checkpoints" in refused.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [28, 30, 5])  # no space left, read-only, input/output error
def test_a_disk_that_fails_while_saving_leaves_the_checkpoint_before(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    case = {"train": {**LONG, "max_steps": 6, "save_every": 2}}
    expected = jobs.bits(jobs.train(tmp_path, tiny_model, "whole", **case)[0])
    plain, calls = os.fsync, []

    def fsync(handle: int) -> None:
        if "step-000004" in os.readlink(f"/proc/self/fd/{handle}"):
            calls.append(handle)
            if len(calls) == 3:
                raise OSError(number, os.strerror(number))
        plain(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(
        MachineError, match=f"checkpoint of step 4 could not be written.*{os.strerror(number)}"
    ) as failed:
        run_with(tmp_path, tiny_model, "run", **case)
    assert "step-000002, and is as it was" in failed.value.message
    assert failed.value.exit_code == 4
    monkeypatch.undo()
    run = run_with(tmp_path, tiny_model, "run", **case)
    assert jobs.bits(run) == expected


def test_diverging_names_the_last_checkpoint(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, calls = loop._backward, []

    def backward(session: Any, work: Any) -> Any:
        calls.append(1)
        loss, rows = plain(session, work)
        return loss * float("nan") if len(calls) > 4 else loss, rows

    monkeypatch.setattr(loop, "_backward", backward)
    with pytest.raises(DivergedError) as diverged:
        jobs.train(tmp_path, tiny_model, "run", train={**LONG, "max_steps": 12, "save_every": 2})
    assert "the last checkpoint before is" in diverged.value.hint
    assert "step-000006" in diverged.value.hint
    assert diverged.value.exit_code == 5


def test_nothing_in_a_checkpoint_is_a_pickle(half: Path) -> None:
    for file in checkpoint.path_of(half, 5).iterdir():
        assert file.suffix in (".safetensors", ".json", ".yaml")
        assert file.stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    found = os.umask(0)
    os.umask(found)
    return found


def test_the_log_reads_as_one_run(tmp_path: Path, tiny_model: Path, half: Path) -> None:
    run, _ = go_on(tmp_path, tiny_model)
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in log if event["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    assert [event["event"] for event in log].count("resumed") == 1
    resolved = yaml.safe_load((run / "resolved.yaml").read_text())
    assert resolved == {**yaml.safe_load((tmp_path / "whole" / "resolved.yaml").read_text()), "output": str(run)}
