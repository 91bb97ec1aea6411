"""Runs and checkpoints: how far they have come, and whether their files are what was written."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from peftctl.atomic import lock, sha256
from peftctl.cli import app
from peftctl.console import adapters
from peftctl.errors import UsageError, VerificationError
from peftctl.exporters.export import Asked, export
from peftctl.inspection import journal, own, published, runs
from peftctl.inspection.able import Able
from peftctl.inspection.adapter import adapter_facts
from peftctl.inspection.checkpoints import checkpoint_facts
from peftctl.inspection.runs import RunFacts, run_facts
from peftctl.inspection.what import decide
from peftctl.merge import source
from peftctl.run import open_run
from peftctl.train import rundir
from tests import jobs, tiny


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A finished run. Tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("trained")
    tiny.jsonl(folder / "eval.jsonl", tiny.chats(4, seed=1))
    run, _ = jobs.train(folder, tiny_model, data={"train": "train.jsonl", "eval": "eval.jsonl"})
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def unfinish(run: Path) -> None:
    (run / "manifest.json").unlink()
    shutil.rmtree(run / "adapter")
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = max(at for at, event in enumerate(events) if event["event"] == "step")
    write_events(run, events[:last])


def write_events(run: Path, events: list[Any]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def test_the_names_in_a_run_are_those_that_training_gives() -> None:
    assert (runs.LOCK, runs.UNFINISHED, runs.STARTED) == (rundir.LOCK, rundir.UNFINISHED, rundir.STARTED)


def test_a_finished_run_is_told_from_its_manifest_and_journal(run: Path, tiny_model: Path) -> None:
    facts = run_facts(run)
    manifest = jobs.manifest(run)
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [event for event in events if event["event"] == "step"][-1]
    assert (facts.status, facts.step, facts.steps) == ("finished", 3, 3)
    assert (facts.method, facts.base_name, facts.task) == ("lora", str(tiny_model), "causal_lm")
    assert facts.settings["rank"] == 4
    assert (facts.loss, facts.learning_rate, facts.epoch) == (last["loss"], last["learning_rate"], 1.0)
    assert facts.losses == manifest["losses"]
    assert facts.metrics == manifest["metrics"]
    assert facts.seconds == events[-1]["seconds"]
    assert facts.data["train"]["kept"] == 24
    assert facts.data["eval"]["kept"] == 4
    assert (facts.verified, facts.intact, facts.differing, facts.skipped_updates) == (True, True, {}, 0)
    assert facts.adapter == adapter_facts(run / "adapter").in_short()
    assert facts.adapter["parameters"] == manifest["trainable_parameters"]
    assert facts.notes == ()
    json.dumps(facts.as_dict(), allow_nan=False)


def test_a_run_under_way_is_in_progress(run: Path) -> None:
    unfinish(run)
    with lock(run / rundir.LOCK, "busy"):
        facts = run_facts(run)
    assert (facts.status, facts.process, facts.step, facts.steps) == ("in progress", os.getpid(), 2, 3)
    assert (facts.intact, facts.verified, facts.adapter, facts.seconds) == (None, None, None, None)
    assert (facts.method, facts.task) == ("lora", "causal_lm")
    assert facts.data["train"]["kept"] == 24
    assert facts.loss is not None


def test_looking_at_a_run_takes_its_lock_from_nobody(run: Path) -> None:
    unfinish(run)
    (run / rundir.LOCK).write_text("1")
    assert run_facts(run).status == "interrupted"
    with lock(run / rundir.LOCK, "busy"):
        assert run_facts(run).status == "in progress"


@pytest.mark.parametrize("left", ["nothing", "a lock that nobody holds", "half an adapter"])
def test_a_killed_run_is_interrupted(run: Path, left: str) -> None:
    unfinish(run)
    if left.startswith("a lock"):
        (run / rundir.LOCK).write_text("123456789")
    if left.startswith("half"):
        (run / ".adapter.x.partial").mkdir()
    facts = run_facts(run)
    assert (facts.status, facts.process, facts.step, facts.method) == ("interrupted", None, 2, "lora")


def test_a_torn_last_line_is_no_error(run: Path) -> None:
    unfinish(run)
    whole = run_facts(run)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "step": 3, "lo')
    assert run_facts(run) == whole
    with (run / "metrics.jsonl").open("a") as file:
        file.write('\n\xff{"event": 1}\n[]\n')
    facts = run_facts(run)
    assert facts.step == whole.step
    assert facts.notes == ("3 lines of metrics.jsonl are no events",)


def test_losses_that_were_not_finite_are_none_and_skipped_updates_are_counted(run: Path) -> None:
    unfinish(run)
    step = {"event": "step", "step": 2, "steps": 3, "loss": None, "learning_rate": 1e-3, "epoch": None}
    skipped = [{"event": "skipped", "step": at, "reason": "loss nan"} for at in (1, 2)]
    write_events(run, [*skipped, step])
    facts = run_facts(run)
    assert (facts.loss, facts.skipped_updates, facts.step) == (None, 2, 2)


@pytest.mark.slow
@pytest.mark.every
def test_a_journal_of_any_length_is_read_at_its_ends(run: Path) -> None:
    unfinish(run)
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    step = next(event for event in events if event["event"] == "step")
    many = [{**step, "step": at, "steps": 10**6, "padding": "x" * 1000} for at in range(12_000)]
    write_events(run, [*events, *many])
    assert (run / "metrics.jsonl").stat().st_size > journal.HEAD_BYTES + journal.TAIL_BYTES
    begun = time.process_time()
    facts = run_facts(run)
    assert time.process_time() - begun < 2
    assert (facts.step, facts.steps, facts.data["train"]["kept"]) == (11_999, 10**6, 24)
    assert "there may be more skipped updates" in facts.notes[0]
    write_events(run, [*events, *([{"event": "x"}] * 200_000)])
    begun = time.process_time()
    assert run_facts(run).data["train"]["kept"] == 24
    assert time.process_time() - begun < 3


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


WEIGHTS = "adapter/adapter_model.safetensors"
CHANGES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "other bytes": (lambda run: flip(run / WEIGHTS), WEIGHTS, "has other contents than the manifest says"),
    "cut short": (
        lambda run: os.truncate(run / WEIGHTS, 5_000),
        WEIGHTS,
        "has 5,000 bytes, where the manifest says ",
    ),
    "missing": (lambda run: (run / WEIGHTS).unlink(), WEIGHTS, "is missing"),
    "a pipe": (
        lambda run: ((run / WEIGHTS).unlink(), os.mkfifo(run / WEIGHTS)),
        WEIGHTS,
        "is missing",
    ),
    "more": (lambda run: (run / "adapter" / "new").write_text(""), "adapter/new", "is not in the manifest"),
    "resolved": (lambda run: flip(run / "resolved.yaml"), "resolved.yaml", "has other contents"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_file_that_differs_is_named(run: Path, kind: str) -> None:
    change, name, how = CHANGES[kind]
    change(run)
    facts = run_facts(run)
    assert (facts.status, facts.intact) == ("finished", False)
    assert facts.differing.keys() == {name}
    assert facts.differing[name].startswith(how)


def edit(run: Path, **fields: Any) -> None:
    (run / "manifest.json").write_text(json.dumps(jobs.manifest(run) | fields))


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "adapter/../../x", "a\0b"])
def test_a_manifest_speaks_of_its_own_files_only(run: Path, name: str) -> None:
    (run.parent / "outside").write_text("x")
    entry = {"size_bytes": 1, "sha256": sha256(run.parent / "outside")}
    edit(run, files=jobs.manifest(run)["files"] | {name: entry})
    found = run_facts(run).differing
    expected = "is missing" if "\0" in name else "the manifest's entry is no file of this run with size and hash"
    assert found == {name: expected}


def test_a_manifest_that_says_nothing_right_is_no_crash(run: Path) -> None:
    fields = ("artifact", "method", "base", "data", "losses", "metrics", "verified", "files", "steps", "task")
    for value in (None, 1, "x", [1], {"a": [1]}, {"files": {}}, 1e300, -5):
        edit(run, **dict.fromkeys(fields, value))
        facts = run_facts(run)
        json.dumps(facts.as_dict(), allow_nan=False)
        adapters.show(facts)
        assert (facts.intact, facts.verified) == (False, False)


def test_large_files_are_not_hashed_and_that_is_said(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(published, "HASHED_BYTES", 3_000)
    facts = run_facts(run)
    assert facts.intact is False
    assert facts.differing[WEIGHTS] == "was not hashed: with the files before it, it is too large"


def test_what_a_run_exports_and_merges_is_what_the_verbs_take(run: Path, tmp_path: Path) -> None:
    facts = adapter_facts(run / "adapter")
    assert facts.run == str(run)
    assert (facts.merges, facts.exports) == (Able(True), {"adapter": Able(True), "merged": Able(True)})
    source.open_source(run, None, lambda _: None)
    export(open_run(run), tmp_path / "out", Asked("adapter"))
    exported = adapter_facts(tmp_path / "out")
    assert (exported.run, exported.exports, exported.merges.able) == ("", {}, True)
    assert source.open_source(tmp_path / "out", None, lambda _: None).run is None
    flip(run / "adapter" / "README.md")
    facts = adapter_facts(run / "adapter")
    changed = Able(False, "files of its run are not what was published")
    assert (facts.merges, facts.exports) == (changed, {"adapter": changed, "merged": changed})
    with pytest.raises(VerificationError):
        export(open_run(run), tmp_path / "again", Asked("adapter"))


def test_a_base_of_the_same_shapes_that_was_not_trained_on_does_not_fit(
    run: Path, tmp_path: Path, tiny_model: Path
) -> None:
    own = adapter_facts(run / "adapter", tiny_model)
    assert own.fit is not None
    assert (own.fit.fits, own.wrong) == (True, False)
    other = tiny.save(tmp_path / "other", tiny.llama(seed=7))
    facts = adapter_facts(run / "adapter", other)
    assert facts.fit is not None
    assert facts.fit.fits is False
    assert facts.fit.misfits == (
        f"its shapes fit, but it is not the base that this was trained on, {jobs.manifest(run)['base']['name']}",
    )
    assert facts.wrong
    alone = Path(shutil.copytree(run / "adapter", tmp_path / "alone"))  # nothing says what it was trained on
    found = adapter_facts(alone, other).fit
    assert found is not None
    assert found.fits


def test_a_base_that_was_quantised_is_said_to_have_been(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_facts(run).quantization is None
    assert " bits" not in shown(run_facts(run), capsys)
    settings = {"bits": 4, "type": "nf4", "double_quant": True}
    edit(run, quantization=settings)
    facts = run_facts(run)
    assert facts.quantization == settings
    out = shown(facts, capsys)
    assert ", quantised in training to 4 bits (type nf4, double_quant True)\n" in out
    assert "its base was quantised to 4 bits (type nf4, double_quant True)\n" in out
    assert "quantised in training to 4 bits" in shown(adapter_facts(run / "adapter"), capsys)


@pytest.mark.parametrize(("method", "artifact"), [("bitfit", "adapter"), ("full", "model")])
def test_what_peftctl_saves_without_peft_is_told_in_its_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, artifact: str
) -> None:
    base = tiny.save(tmp_path / "base", tiny.gpt2())
    path, _ = jobs.train(tmp_path, base, method=method)
    biases = sum(p.numel() for name, p in tiny.gpt2().named_parameters() if name.endswith("bias"))
    count = biases if method == "bitfit" else tiny.gpt2().num_parameters()
    facts = run_facts(path)
    assert facts.adapter is None
    assert facts.own is not None
    assert (facts.own["folder"], facts.own["parameters"], facts.trained) == (artifact, count, count)
    assert f"{artifact}: {method}, {count:,} trained; {count:,} parameters in F32, " in shown(facts, capsys)
    if method == "bitfit":
        assert decide(str(path / artifact)).kind == decide(str(path / artifact / own.NAME)).kind == "own"
        saved = own.own_facts(path / artifact)
        assert (saved.method, saved.run, saved.base_name) == (method, str(path), str(base))
        assert (saved.parameters, saved.parts) == (count, {"trained.safetensors": count})
        out = shown(saved, capsys)
        assert f"{method}, no adapter of PEFT's; {count:,} parameters in F32, " in out
        assert f"run: {path}: name this to see how it was trained" in out
        json.dumps(saved.as_dict())


def test_a_mixture_is_told_by_its_files(tmp_path: Path) -> None:
    for name in ("classifier.safetensors", "adapters/0/adapter_model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({"x": torch.zeros(3, 5)}, tmp_path / name)
    (tmp_path / own.NAME).write_text(json.dumps({"method": "xlora", "base": "b", "revision": None}))
    found = own.own_facts(tmp_path)
    assert found.parts == {"adapters/0/adapter_model.safetensors": 15, "classifier.safetensors": 15}
    assert (found.parameters, found.run) == (30, "")
    os.truncate(tmp_path / "classifier.safetensors", 90)
    with pytest.raises(UsageError, match=r"classifier\.safetensors"):
        own.own_facts(tmp_path)
    (tmp_path / own.NAME).write_text("{}")
    with pytest.raises(UsageError, match="names no method"):
        own.own_facts(tmp_path)


def test_inspecting_what_is_not_as_it_should_be_ends_with_five(run: Path, tmp_path: Path, tiny_model: Path) -> None:
    def code(*arguments: str | Path) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["inspect", *map(str, arguments)])
        return done.exit_code, done.stdout

    assert code(run)[0] == code(run / "adapter")[0] == code(run / "adapter", "--base", tiny_model)[0] == 0
    other = tiny.save(tmp_path / "other", tiny.llama(seed=7))
    ended, out = code(run / "adapter", "--base", other)
    assert (ended, "fits: no, " in out, "merges: yes" in out) == (5, True, True)
    ended, out = code(run / "adapter", "--base", other, "--json")
    assert (ended, json.loads(out)["fit"]["fits"]) == (5, False)
    flip(run / "adapter" / "README.md")
    ended, out = code(run)
    assert (ended, "error: adapter/README.md has other contents" in out) == (5, True)
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    (run / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "r": 99}))
    assert code(run / "adapter")[0] == 5


def test_a_run_that_links_to_itself_comes_to_an_end(run: Path) -> None:
    (run / "adapter" / "again").symlink_to(run)
    (run / "adapter" / "self").symlink_to(run / "adapter" / "self")
    assert run_facts(run).intact


def test_a_damaged_adapter_does_not_hide_the_run(run: Path) -> None:
    os.truncate(run / WEIGHTS, 5_000)
    facts = run_facts(run)
    assert facts.adapter is None
    assert "is cut short" in facts.notes[0]


def test_what_earlier_attempts_left_is_named(run: Path) -> None:
    (run / "unfinished-1").mkdir()
    (run / "environment.json").unlink()
    facts = run_facts(run)
    assert facts.unfinished == ("unfinished-1",)
    assert facts.notes == ("missing: environment.json",)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "is not JSON"),
        ('{"kind": "export"}', "is not the manifest of a run"),
        ("[" * 10_000, "is nested more than 64 levels deep"),
    ],
)
def test_a_damaged_manifest_is_refused(run: Path, content: str, fault: str) -> None:
    (run / "manifest.json").write_text(content)
    with pytest.raises(UsageError, match=fault):
        run_facts(run)


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no run directory"):
        run_facts(tmp_path)
    with pytest.raises(UsageError, match="no such file or folder"):
        run_facts(tmp_path / "none")


@pytest.mark.parametrize("content", ["method: [", "a" * 600_000, "- 1", "\x00"])
def test_a_recipe_that_is_none_is_noted(run: Path, content: str) -> None:
    unfinish(run)
    (run / "resolved.yaml").write_text(content)
    facts = run_facts(run)
    assert facts.method is None
    assert facts.notes[0].startswith("resolved.yaml is ")


def test_a_recipe_or_journal_that_is_a_pipe_is_not_waited_for(run: Path) -> None:
    unfinish(run)
    for name in ("resolved.yaml", "metrics.jsonl"):
        (run / name).unlink()
        os.mkfifo(run / name)
    with pytest.raises(UsageError, match="is no plain file"):
        run_facts(run)
    (run / "metrics.jsonl").unlink()
    assert run_facts(run).status == "interrupted"


def shown(facts: Any, capsys: pytest.CaptureFixture[str]) -> str:
    adapters.show(facts)
    return capsys.readouterr().out


def test_a_person_sees_how_a_run_stands(run: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path) -> None:
    facts: RunFacts = run_facts(run)
    out = shown(facts, capsys)
    assert f"{run}: finished, step 3 of 3, 0:" in out
    assert "method: lora (rank 4, alpha 8.0" in out
    assert f"base: {tiny_model}\n" in out
    assert "train: 24 read, 24 kept, " in out
    assert "reloaded: gave the trained model's logits\n" in out
    assert "intact: yes: every file is what was published\n" in out
    assert "adapter: lora, rank 4, alpha 8, for CAUSAL_LM; " in out
    flip(run / WEIGHTS)
    out = shown(run_facts(run), capsys)
    assert f"intact: no\nerror: {WEIGHTS} has other contents than the manifest says\n" in out
    unfinish_copy = run
    shutil.rmtree(unfinish_copy / "adapter")
    (unfinish_copy / "manifest.json").unlink()
    assert f"{run}: interrupted, step 3 of 3" in shown(run_facts(run), capsys)


STATE = {
    "global_step": 20, "max_steps": 60, "epoch": 0.5, "num_train_epochs": 2, "best_metric": 0.25,
    "best_global_step": 10, "best_model_checkpoint": "out/checkpoint-10",
    "log_history": [
        {"loss": 3.0, "learning_rate": 1e-3, "step": 10}, {"eval_loss": 0.25, "eval_runtime": 1.5, "step": 10},
        {"loss": 2.5, "learning_rate": 5e-4, "step": 20}, {"train_runtime": 1.0},
    ],
}  # fmt: skip
LEFT = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")


@pytest.fixture
def checkpoint(tmp_path: Path, trained: Path) -> Path:
    """A checkpoint as transformers' Trainer lays it out for an adapter."""
    folder = tmp_path / "checkpoint-20"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(trained / "adapter" / name, folder / name)
    (folder / "trainer_state.json").write_text(json.dumps(STATE))
    for name in LEFT:
        (folder / name).write_bytes(b"\x80\x04.")
    return folder


def test_a_trainers_checkpoint_is_told_from_its_state(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = checkpoint_facts(checkpoint)
    assert (facts.layout, facts.step, facts.steps, facts.epoch, facts.epochs) == ("transformers", 20, 60, 0.5, 2.0)
    assert (facts.loss, facts.learning_rate) == (2.5, 5e-4)
    assert facts.metrics == {"eval_loss": 0.25, "eval_runtime": 1.5}
    assert facts.best == {"value": 0.25, "step": 10, "checkpoint": "out/checkpoint-10"}
    assert (facts.complete, facts.missing, facts.intact, facts.damaged) == (True, (), True, {})
    assert facts.unopened == tuple(sorted(LEFT))
    assert facts.adapter == adapter_facts(checkpoint).in_short()
    json.dumps(facts.as_dict(), allow_nan=False)
    out = shown(facts, capsys)
    assert f"{checkpoint}: checkpoint of transformers, step 20 of 60, epoch 0.5; an adapter, " in out
    assert "best: 0.25, out/checkpoint-10\n" in out
    assert "complete: yes\n" in out
    assert "not opened: optimizer.pt, rng_state.pth, scheduler.pt, training_args.bin: pickles" in out


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("optimizer.pt", "optimizer.pt or optimizer.bin or optimizer_0 or global_step*"),
        ("scheduler.pt", "scheduler.pt or global_step*"),
        ("rng_state.pth", "rng_state*"),
        ("trainer_state.json", "trainer_state.json"),
        (
            "adapter_model.safetensors",
            "weights (adapter_model.safetensors, model.safetensors or its index)",
        ),
    ],
)
def test_what_a_checkpoint_lacks_is_named(
    checkpoint: Path, name: str, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint / name).unlink()
    facts = checkpoint_facts(checkpoint)
    assert (facts.complete, facts.missing, facts.step) == (False, (missing,), 20)  # its name says the step too
    assert f"complete: no: lacks {missing}\n" in shown(facts, capsys)


def test_random_states_by_process_are_enough(checkpoint: Path) -> None:
    (checkpoint / "rng_state.pth").rename(checkpoint / "rng_state_0.pth")
    assert checkpoint_facts(checkpoint).complete


def test_cut_weights_are_damaged(checkpoint: Path) -> None:
    os.truncate(checkpoint / "adapter_model.safetensors", 5_000)
    facts = checkpoint_facts(checkpoint)
    assert (facts.complete, facts.intact, facts.adapter) == (True, False, None)
    assert "is cut short" in facts.damaged["adapter_model.safetensors"]


def test_a_checkpoint_of_a_whole_model(checkpoint: Path, tiny_model: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (checkpoint / name).unlink()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny_model / name, checkpoint / name)
    facts = checkpoint_facts(checkpoint)
    assert (facts.holds, facts.complete, facts.intact) == ("a model", True, True)
    os.truncate(checkpoint / "model.safetensors", 5_000)
    assert checkpoint_facts(checkpoint).damaged.keys() == {"model.safetensors"}
    index = {"weight_map": {"a": "model-1.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert checkpoint_facts(checkpoint).damaged.keys() == {"model-1.safetensors"}


def test_accelerates_checkpoint_has_the_step_of_its_name(tmp_path: Path, tiny_model: Path) -> None:
    folder = tmp_path / "checkpoint_7-8"
    folder.mkdir()
    shutil.copy(tiny_model / "model.safetensors", folder / "model.safetensors")
    for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
        (folder / name).write_bytes(b"")
    facts = checkpoint_facts(folder)
    assert (facts.layout, facts.step, facts.complete) == ("accelerate", 8, True)


def test_what_is_no_checkpoint_is_refused_with_the_last_one_there_is(tmp_path: Path) -> None:
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-x"):
        (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match="is no checkpoint") as error:
        checkpoint_facts(tmp_path)
    assert error.value.hint == f"its last one is {tmp_path}/checkpoint-10"


@pytest.mark.slow
def test_a_checkpoint_that_the_trainer_wrote_is_complete(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Trainer, TrainingArguments

    model = get_peft_model(tiny.llama(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    rows = [{"input_ids": torch.arange(8), "labels": torch.arange(8)} for _ in range(8)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=4, save_steps=2, logging_steps=1, report_to=[], use_cpu=True,
        per_device_train_batch_size=2, eval_strategy="steps", eval_steps=2, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    facts = checkpoint_facts(tmp_path / "out" / "checkpoint-4")
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert (facts.step, facts.steps, facts.complete, facts.missing, facts.intact) == (4, 4, True, (), True)
    assert facts.loss == logged[-1]["loss"]
    assert facts.metrics["eval_loss"] == [e for e in trainer.state.log_history if "eval_loss" in e][-1]["eval_loss"]
    assert facts.adapter is not None
    assert facts.adapter["rank"] == 8
