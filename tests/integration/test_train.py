"""The main job on a tiny model: what it leaves, and that the result does not depend on how it was cut up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from peftctl import atomic
from peftctl.data.collate import Collator
from peftctl.errors import DataError, DivergedError, MachineError, UsageError, VerificationError
from peftctl.model import adapter
from peftctl.objectives import OBJECTIVES
from peftctl.tasks import TASKS, Layout, Task
from tests import jobs, tiny


@pytest.mark.quick
def test_a_run_leaves_all_its_files_and_learns(tmp_path: Path, tiny_model: Path) -> None:
    run, events = jobs.train(tmp_path, tiny_model, train={"epochs": 6}, data={"eval": {"count": 8}})

    assert sorted(p.name for p in run.iterdir()) == [
        "adapter", "checkpoints", "environment.json", "manifest.json", "metrics.jsonl", "recipe.yaml", "resolved.yaml",
    ]  # fmt: skip
    seen = jobs.losses(events)
    assert seen[-1] < 0.7 * seen[0]
    facts = jobs.manifest(run)
    assert facts["steps"] == 12
    assert facts["data"]["train"]["kept"] == 16
    assert facts["data"]["eval"]["kept"] == 8
    assert set(facts["metrics"]) == {"loss", "perplexity", "token_accuracy"}
    assert facts["verified"]["reload"]["verified"] == "yes"
    for name, entry in facts["files"].items():
        assert atomic.sha256(run / name) == entry["sha256"]
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    step = next(event for event in logged if event["event"] == "step")
    assert {
        "event", "step", "loss", "learning_rate", "tokens", "supervised_tokens", "tokens_per_s", "grad_norm",
        "peak_memory_bytes",
    } <= step.keys()  # fmt: skip
    assert logged == json.loads(json.dumps(events))


@pytest.mark.quick
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plain_peft_loads_the_adapter_and_gives_the_trained_models_logits(
    tmp_path: Path, tiny_model: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trained: list[torch.Tensor] = []
    inputs: list[dict[str, torch.Tensor]] = []

    def remember(task: Task, model: torch.nn.Module, given: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs.append(given)
        trained.append(outputs(task, model, given))
        return trained[-1]

    outputs = adapter.outputs
    monkeypatch.setattr(adapter, "outputs", remember)
    run, _ = jobs.train(tmp_path, tiny_model, model={"dtype": dtype})

    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=getattr(torch, dtype))
    before = base(**inputs[0]).logits.float()
    plain = PeftModel.from_pretrained(base, run / "adapter").eval()
    with torch.no_grad():
        found = plain(**inputs[0]).logits.float()
    rounding = torch.finfo(getattr(torch, dtype)).eps * trained[0].abs().max()
    assert (found - trained[0]).abs().max() <= rounding
    assert (found - before).abs().max() > 10 * rounding  # the adapter does something


@pytest.mark.quick
def test_the_same_recipe_and_seed_give_the_same_bits_and_another_seed_does_not(
    tmp_path: Path, tiny_model: Path
) -> None:
    method = {"dropout": 0.1}
    one, first = jobs.train(tmp_path, tiny_model, "one", method=method)
    two, second = jobs.train(tmp_path, tiny_model, "two", method=method)
    three, _ = jobs.train(tmp_path, tiny_model, "three", method=method, train={"seed": 1})

    assert jobs.losses(first) == jobs.losses(second)
    assert atomic.inventory(one / "adapter") == atomic.inventory(two / "adapter")
    weights = "adapter/adapter_model.safetensors"
    assert atomic.sha256(one / weights) != atomic.sha256(three / weights)


def test_evaluating_in_between_changes_nothing(tmp_path: Path, tiny_model: Path) -> None:
    data = {"eval": {"count": 4}}
    plain, _ = jobs.train(tmp_path, tiny_model, "plain", method={"dropout": 0.1}, data=data)
    watched, events = jobs.train(tmp_path, tiny_model, "watched", method={"dropout": 0.1}, data=data, eval={"every": 1})

    assert sum(event["event"] == "eval" for event in events) == 3
    assert atomic.inventory(plain / "adapter") == atomic.inventory(watched / "adapter")


def test_the_resolved_recipe_trains_the_same_bits(tmp_path: Path, tiny_model: Path) -> None:
    from peftctl.events import Events
    from peftctl.recipe import load
    from peftctl.train import job

    run, _ = jobs.train(tmp_path, tiny_model, data={"eval": {"split": 0.2}})
    again = job.train(load(run / "resolved.yaml", str(tmp_path / "again")), "", Events())

    assert atomic.inventory(run / "adapter") == atomic.inventory(again / "adapter")
    first, second = load(run / "resolved.yaml"), load(again / "resolved.yaml")
    assert replace(first, output="") == replace(second, output="")


def test_eight_rows_as_one_two_or_eight_micro_batches_give_the_same_trajectory(
    tmp_path: Path, tiny_model: Path
) -> None:
    runs = {}
    for name, tokens in {"one": 100_000, "two": 300, "eight": 8}.items():
        _, events = jobs.train(tmp_path, tiny_model, name, train={"micro_batch_tokens": tokens, "epochs": 4})
        runs[name] = torch.tensor(jobs.losses(events), dtype=torch.float64)

    # Each update moves a weight by about the learning rate whatever the gradient's size (AdamW), so the rounding
    # of a gradient that is nearly zero is what can grow: a few units in float32's last place an update.
    steps = len(runs["one"])
    bound = steps * 32 * torch.finfo(torch.float32).eps * runs["one"].max()
    for other in ("two", "eight"):
        assert (runs["one"] - runs[other]).abs().max() <= bound


def test_the_gradient_of_a_step_is_the_same_however_it_is_cut(tiny_model: Path) -> None:
    """In float64 nothing is lost to rounding, so a wrong normalisation cannot hide."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from peftctl.example import Conversation, Turn

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    task, objective = TASKS["causal_lm"], OBJECTIVES["cross_entropy"]
    rows = []
    for row in tiny.chats(8):
        turns = [Turn(m["role"], m["content"], float(m["role"] == "assistant")) for m in row["messages"]]
        (made,) = task.encode([Conversation(tuple(turns))], tokenizer)
        assert isinstance(made, list)
        rows += made
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64)
    weight = model.model.layers[0].self_attn.q_proj.weight
    count = sum(objective.count(row) for row in rows)
    gradients = []
    for tokens in (8, 300, 100_000):
        for slices in (True, False):
            model.zero_grad()
            collate = Collator(task, tokenizer, Layout(0, slices), tokens, torch.device("cpu"))
            for group in collate.groups(rows):
                (objective.step(model, collate([rows[index] for index in group])).sum / count).backward()
            gradients.append(weight.grad.clone())
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-5, atol=1e-9)  # the loss itself is float32
    # The oracle: transformers' own loss of all rows together, which is a mean over their shifted labels.
    batch = Collator(task, tokenizer, Layout(0), 0, torch.device("cpu"))(rows)["inputs"]
    labels = batch["input_ids"].clone().fill_(-100)
    for index, row in enumerate(rows):
        for at, weight_of in enumerate(row.weights):
            if weight_of:
                labels[index, at] = row.ids[at]
    model.zero_grad()
    model(**batch, labels=labels).loss.backward()
    torch.testing.assert_close(weight.grad, gradients[0], rtol=1e-5, atol=1e-9)


def test_gradient_checkpointing_changes_nothing(tmp_path: Path, tiny_model: Path) -> None:
    _, plain = jobs.train(tmp_path, tiny_model, "plain", method={"dropout": 0.1})
    _, saved = jobs.train(
        tmp_path, tiny_model, "saved", method={"dropout": 0.1}, train={"gradient_checkpointing": True}
    )
    assert jobs.losses(plain) == jobs.losses(saved)


def test_gpt2_trains_too(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "gpt2", tiny.gpt2())
    run, events = jobs.train(tmp_path, model, train={"epochs": 3})
    seen = jobs.losses(events)
    assert seen[-1] < seen[0]
    assert "transformer.h.0.attn.c_attn" in jobs.manifest(run)["targets"]


def test_prompt_completion_rows_train(tmp_path: Path, tiny_model: Path) -> None:
    tiny.jsonl(tmp_path / "train.jsonl", [{"prompt": f"{n}+1=", "completion": str(n + 1)} for n in range(24)])
    run, events = jobs.train(tmp_path, tiny_model, train={"epochs": 4})
    # each learned row is its digits and the end of the text
    assert jobs.manifest(run)["data"]["train"]["supervised_tokens"] == sum(len(str(n + 1)) + 1 for n in range(24))
    assert jobs.losses(events)[-1] < jobs.losses(events)[0]


@pytest.mark.parametrize("name", ["sgd", "adafactor", "adamw_8bit"])
def test_other_optimizers_train(tmp_path: Path, tiny_model: Path, name: str) -> None:
    # Adafactor scales a step by the tensor's own size, and B starts at zero.
    rate = 5e-3 if name == "adamw_8bit" else 0.5
    _, events = jobs.train(tmp_path, tiny_model, train={"optimizer": name, "epochs": 4, "learning_rate": rate})
    seen = jobs.losses(events)
    assert seen[-1] < seen[0]


def test_rows_with_nothing_to_learn_are_dropped_and_counted(tmp_path: Path, tiny_model: Path) -> None:
    silent = {"messages": [{"role": "user", "content": "hello?"}]}
    tiny.jsonl(tmp_path / "train.jsonl", [silent, *tiny.chats(16), silent])
    _, events = jobs.train(tmp_path, tiny_model)
    data = next(event for event in events if event["event"] == "data")
    assert (data["read"], data["kept"], data["dropped"]) == (18, 16, {"nothing to learn": 2})


def test_no_row_left_is_a_data_error_that_leaves_no_run(tmp_path: Path, tiny_model: Path) -> None:
    tiny.jsonl(tmp_path / "train.jsonl", [{"messages": [{"role": "user", "content": "hello?"}]}] * 3)
    with pytest.raises(DataError, match="none of the 3 training rows is left: 3 nothing to learn"):
        jobs.train(tmp_path, tiny_model)
    assert not (tmp_path / "run").exists()


@pytest.mark.quick
def test_a_faulty_row_is_named_before_weights_are_loaded(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftctl.model import load

    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("weights were loaded"))
    path = tiny.jsonl(tmp_path / "train.jsonl", tiny.chats(3))
    path.write_text(path.read_text() + '{"messages": 3}\n{"messages"\n')
    with pytest.raises(DataError) as caught:
        jobs.train(tmp_path, tiny_model)
    first, second = caught.value.message.splitlines()
    assert first == f"{path}:4: messages is a number, not a list of messages"
    assert second.startswith(f"{path}:5: not JSON: ")


def test_a_finished_run_is_never_overwritten(tmp_path: Path, tiny_model: Path) -> None:
    run, _ = jobs.train(tmp_path, tiny_model)
    before = atomic.inventory(run)
    with pytest.raises(UsageError, match="holds a finished run"):
        jobs.train(tmp_path, tiny_model, method={"rank": 2})
    assert atomic.inventory(run) == before


def test_something_else_in_the_run_directory_is_left_alone(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds something already"):
        jobs.train(tmp_path, tiny_model)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_what_an_unfinished_run_left_is_moved_aside_and_said(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftctl.train import loop

    with monkeypatch.context() as patch:
        patch.setattr(loop, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                jobs.train(tmp_path, tiny_model)
    run, events = jobs.train(tmp_path, tiny_model)
    assert [event["message"].split()[-1] for event in events if event["event"] == "warning"] == ["unfinished-2/"]
    assert (run / "unfinished-1" / "metrics.jsonl").exists()
    assert (run / "unfinished-2" / "metrics.jsonl").exists()
    assert (run / "manifest.json").exists()


def test_an_adapter_that_reads_back_differently_is_not_published(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    def damaged(*given: Any, **named: Any) -> None:
        save(*given, **named)
        folder = given[-1]
        tensors = load_file(folder / "adapter_model.safetensors")
        name = next(name for name in tensors if "lora_B" in name)
        tensors[name] += 0.01
        save_file(tensors, folder / "adapter_model.safetensors")

    save = adapter.save
    monkeypatch.setattr(adapter, "save", damaged)
    with pytest.raises(VerificationError, match="nothing was published"):
        jobs.train(tmp_path, tiny_model)
    assert [p.name for p in (tmp_path / "run").iterdir() if "adapter" in p.name] == []
    assert not (tmp_path / "run" / "manifest.json").exists()


def test_three_updates_that_are_not_finite_stop_the_run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftctl.objectives import Loss
    from peftctl.objectives.cross_entropy import CrossEntropy

    real = CrossEntropy.step
    calls = []

    def broken(self: CrossEntropy, model: object, batch: dict[str, object], **_: object) -> Loss:
        loss = real(self, model, batch)
        calls.append(1)
        return Loss(loss.sum * float("nan"), loss.count) if len(calls) in (1, 3, 4, 5) else loss

    monkeypatch.setattr(CrossEntropy, "step", broken)
    with pytest.raises(DivergedError, match="not finite at steps 3 to 5"):
        jobs.train(tmp_path, tiny_model, train={"epochs": 4, "micro_batch_tokens": 100_000})
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in logged if event["event"] == "skipped"] == [1, 3, 4, 5]
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_skipped_update_leaves_the_weights_alone_and_is_counted(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftctl.objectives import Loss
    from peftctl.objectives.cross_entropy import CrossEntropy

    real = CrossEntropy.step
    calls = []

    def broken(self: CrossEntropy, model: object, batch: dict[str, object], **_: object) -> Loss:
        loss = real(self, model, batch)
        calls.append(1)
        return Loss(loss.sum * float("inf"), loss.count) if len(calls) == 2 else loss

    monkeypatch.setattr(CrossEntropy, "step", broken)
    run, events = jobs.train(tmp_path, tiny_model, train={"micro_batch_tokens": 100_000})
    assert jobs.manifest(run)["skipped_updates"] == 1
    assert [event["loss"] is None for event in events if event["event"] == "step"] == [False, True, False]


def test_a_tensor_that_is_not_trained_stops_the_run_by_name(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import Linear

    real = Linear.forward

    def deaf(self: Linear, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return self.base_layer(x) if self.in_features == 64 else real(self, x, *args, **kwargs)

    monkeypatch.setattr(Linear, "forward", deaf)
    with pytest.raises(DivergedError, match=r"does not reach .*layers\.0\.mlp\.down_proj\.lora_A"):
        jobs.train(tmp_path, tiny_model, train={"fast": {"lora": False}})


def test_a_gradient_that_stays_zero_stops_the_run_by_name(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft.tuners.lora import Linear

    real = Linear.forward

    def mute(self: Linear, x: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        return real(self, x * 0 if self.in_features == 64 else x, *args, **kwargs)

    monkeypatch.setattr(Linear, "forward", mute)
    with pytest.raises(DivergedError, match=r"the gradient stayed zero for 10 updates of .*down_proj\.lora_A"):
        jobs.train(tmp_path, tiny_model, train={"epochs": 5, "fast": {"lora": False}})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_tracker_gets_every_steps_numbers(tmp_path: Path, tiny_model: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, events = jobs.train(tmp_path, tiny_model, track={"to": ["tensorboard"], "project": "triage"})
    read = EventAccumulator(str(run / "tracking" / "triage"))
    read.Reload()
    logged = read.Scalars("train/loss")
    assert [scalar.step for scalar in logged] == [1, 2, 3]
    assert [scalar.value for scalar in logged] == pytest.approx(jobs.losses(events), rel=1e-6)


def test_a_tracker_that_is_not_installed_is_named_before_anything_is_done(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(MachineError, match=r"track\.to: swanlab cannot be reached"):
        jobs.train(tmp_path, tiny_model, track={"to": ["tensorboard", "swanlab"]})
    assert not (tmp_path / "run").exists()


def test_a_batch_of_more_rows_than_there_are_is_said(tmp_path: Path, tiny_model: Path) -> None:
    _, events = jobs.train(tmp_path, tiny_model, train={"batch_size": 40, "epochs": None, "max_steps": 1})
    notes = [event["message"] for event in events if event["event"] == "warning"]
    assert notes == ["train.batch_size 40 is more than the 24 rows: a step takes rows twice or more"]
    _, events = jobs.train(tmp_path, tiny_model, "whole", train={"batch_size": 40, "epochs": 1})
    assert not [event for event in events if event["event"] == "warning"]


@pytest.mark.parametrize("long", [False, True])
def test_rows_that_are_longer_than_a_model_s_window_are_not_packed(tmp_path: Path, long: bool) -> None:
    base = tiny.save(tmp_path / "mistral", tiny.mistral(window=64))
    rows = [{"prompt": f"{number} is ", "completion": "odd" if number % 2 else "even"} for number in range(30)]
    if long:
        rows.append({"prompt": "a long one, " * 12, "completion": "even"})
    tiny.jsonl(tmp_path / "train.jsonl", rows)
    settings = {"batch_size": 31, "epochs": 3}
    fast, events = jobs.train(tmp_path, base, "fast", train=settings)
    off = dict.fromkeys(("packed", "loss", "lora", "norm"), False)
    plain, _ = jobs.train(tmp_path, base, "plain", train={**settings, "fast": off})
    [said] = [event for event in events if event["event"] == "fast"]
    why = "its attention sees 64 tokens, and rows are longer" if long else ""
    assert (said["packed"], said["not_packed"]) == (not long, why)
    one, two = (jobs.losses(jobs.events(run)) for run in (fast, plain))
    assert one == pytest.approx(two, rel=1e-4)
