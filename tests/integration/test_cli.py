"""The verbs as a user types them: output, JSON, exit codes. No traceback for a user's mistake."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from peftctl.cli import app
from tests import jobs, tiny


def peftctl(*arguments: object, **kwargs: str) -> tuple[int, str, str]:
    """Run a verb in this process; returns exit code, standard output, standard error."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], **kwargs)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    tiny.jsonl(folder / "eval.jsonl", tiny.chats(10, seed=1))
    made, _ = jobs.train(
        folder, tiny_model, data={"eval": "eval.jsonl"}, eval={"choices": ["odd", "even"]}, train={"epochs": 4}
    )
    return made


@pytest.mark.quick
def test_train_prints_plain_lines_and_leaves_a_run(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "r.yaml").write_text(jobs.recipe_text(tmp_path, tiny_model))
    code, out, err = peftctl("train", tmp_path / "r.yaml", "--output", tmp_path / "there")
    assert (code, err) == (0, "")
    assert "step     3/3  loss " in out
    assert f"done     {tmp_path / 'there'} in 0:0" in out
    assert (tmp_path / "there" / "manifest.json").exists()
    assert not (tmp_path / "run").exists()


def test_train_json_prints_only_json(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "r.yaml").write_text(jobs.recipe_text(tmp_path, tiny_model))
    code, out, _ = peftctl("train", tmp_path / "r.yaml", "--json")
    events = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3]
    assert events[-1]["event"] == "done"


def test_eval_measures_base_and_adapter_beside_the_majority(run: Path) -> None:
    code, out, _ = peftctl("eval", run, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["rows"] == 10
    assert facts["adapter"]["loss"] < facts["base"]["loss"]
    assert facts["adapter"]["likeliest"]["rows"] == 10
    assert facts["base"]["majority"] == facts["adapter"]["majority"]
    assert facts["adapter"]["loss"] == pytest.approx(jobs.manifest(run)["metrics"]["loss"], rel=1e-6)
    code, out, _ = peftctl("eval", run)
    assert [line.split()[0] for line in out.splitlines()] == ["10", "loss", "majority", "base", "adapter"]


def test_eval_of_the_base_shows_what_training_measured_of_the_adapter(run: Path) -> None:
    code, out, _ = peftctl("eval", run, "--on", "base", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["adapter, when trained"] == jobs.manifest(run)["metrics"]
    assert "adapter, when trained" not in json.loads(peftctl("eval", run, "--on", "base", "--limit", 5, "--json")[1])


def test_eval_takes_other_rows_and_a_limit(run: Path, tmp_path: Path) -> None:
    other = tiny.jsonl(tmp_path / "other.jsonl", tiny.chats(7, seed=3))
    code, out, _ = peftctl("eval", run, "--data", other, "--limit", 5, "--on", "adapter", "--json")
    assert code == 0
    assert json.loads(out)["rows"] == 5
    assert "base" not in json.loads(out)


def test_an_answer_that_is_no_choice_is_named_with_its_line(run: Path, tmp_path: Path) -> None:
    rows = tiny.chats(2)
    rows[1]["messages"][1]["content"] = "perhaps"
    other = tiny.jsonl(tmp_path / "other.jsonl", rows)
    code, _, err = peftctl("eval", run, "--data", other)
    assert code == 3
    assert f"{other}:2: ends with 'perhaps', which is none of eval.choices (odd, even)" in err


def test_generate_answers_and_streams_the_same_text(run: Path) -> None:
    question = ["generate", run, "is 12 odd?", "--max-new-tokens", 6]
    code, out, _ = peftctl(*question, "--json", "--on", "both")
    answers = json.loads(out)
    assert code == 0
    assert set(answers) == {"base", "adapter"}
    assert answers["base"] != answers["adapter"]
    assert peftctl(*question)[1] == answers["adapter"] + "\n"
    assert peftctl(*question, "--on", "both")[1] == f"base: {answers['base']}\nadapter: {answers['adapter']}\n"
    assert json.loads(peftctl("generate", run, "--max-new-tokens", 6, "--json", input="is 12 odd?")[1]) == {
        "adapter": answers["adapter"]
    }


def test_generate_draws_by_seed(run: Path) -> None:
    asked = ["generate", run, "is 12 odd?", "--json", "--temperature", "1.5", "--max-new-tokens", 12]
    assert peftctl(*asked, "--seed", 1) == peftctl(*asked, "--seed", 1)
    assert peftctl(*asked, "--seed", 1) != peftctl(*asked, "--seed", 2)


def test_load_from_python(run: Path) -> None:
    import peftctl as package

    loaded = package.load(run)
    messages = [{"role": "user", "content": "is 12 odd?"}]
    answer = loaded.generate(messages, max_new_tokens=6)
    with loaded.base():
        assert loaded.generate(messages, max_new_tokens=6) != answer
    assert loaded.generate(messages, max_new_tokens=6) == answer


def test_export_leaves_what_plain_peft_loads_and_refuses_what_was_tampered_with(run: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    code, out, _ = peftctl("export", run, tmp_path / "out", "--to", "adapter")
    assert (code, out) == (0, f"{tmp_path / 'out'}: adapter, verified: yes\n")
    assert AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out").peft_config["default"].r == 4
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The run's manifest.json" not in card
    assert "## Training" in card
    assert "Its tokenizer, with the chat template of training, is in this folder" in card
    code, _, err = peftctl("export", run, tmp_path / "out", "--to", "adapter")
    assert (code, err) == (0, f"{tmp_path / 'out'} holds this already\n")
    (tmp_path / "out" / "README.md").write_text("mine")
    code, _, err = peftctl("export", run, tmp_path / "out", "--to", "adapter")
    assert (code, "exists already" in err) == (2, True)
    config = run / "adapter" / "adapter_config.json"
    text = config.read_text()
    try:
        config.write_text(text + " ")
        code, _, err = peftctl("export", run, tmp_path / "other", "--to", "adapter")
    finally:
        config.write_text(text)
    assert code == 5
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "resolved.yaml"])
@pytest.mark.parametrize("damage", ["delete", "append"])
def test_a_run_that_is_not_what_its_manifest_says_is_refused(run: Path, tmp_path: Path, name: str, damage: str) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    if damage == "delete":
        (broken / name).unlink()
    else:
        (broken / name).write_bytes((broken / name).read_bytes() + b"\n")
    for verb in (["eval", broken], ["generate", broken, "hi"], ["export", broken, tmp_path / "out", "--to", "adapter"]):
        code, _, err = peftctl(*verb)
        assert code == (2 if (name, damage) == ("resolved.yaml", "delete") else 5), err
        assert name in err
    assert not (tmp_path / "out").exists()


def test_another_base_under_the_same_name_is_refused(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    made, _ = jobs.train(tmp_path, base)
    tiny.save(base, tiny.llama(hidden_size=64))
    code, _, err = peftctl("eval", made, "--data", tmp_path / "train.jsonl")
    assert code == 2
    assert "is not the base model this run was trained on" in err


@pytest.mark.quick
@pytest.mark.parametrize(
    ("sections", "code", "said"),
    [
        ({"model": {"name": "./nowhere"}}, 2, "model.name: no such file or folder: "),
        ({"data": {"train": "trian.jsonl"}}, 3, "trian.jsonl: cannot be read: No such file or directory"),
        ({"data": {"train": "train.jsonl", "max_length": 4096}}, 2, "(found 4096); allowed: at most 512"),
        ({"method": {"targets": ["q_porj", "v_proj"]}}, 2, "'q_porj' matches no module"),
        ({"method": {"rank": 0}}, 2, "method.rank: out of range (found 0); allowed: at least 1"),
        ({"train": {"epochs": -1}}, 2, "train.epochs: out of range (found -1); allowed: more than 0"),
        ({"data": {"train": "train.jsonl", "eval": {"count": 24}}}, 3, "24 rows are to be held out of 24"),
    ],
)
def test_a_users_mistake_is_one_message_and_an_exit_code(
    tmp_path: Path, tiny_model: Path, sections: dict[str, object], code: int, said: str
) -> None:
    (tmp_path / "r.yaml").write_text(jobs.recipe_text(tmp_path, tiny_model, **sections))
    found, out, err = peftctl("train", tmp_path / "r.yaml")
    assert found == code, err
    assert said in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["eval", "nowhere"], "nowhere: no such run directory"),
        (["generate", "RUN", "hi", "--on", "bse"], "--on: no such value (found 'bse')"),
        (["generate", "RUN", "hi", "--plain", "--system", "x"], "--system: has no effect with --plain"),
        (["export", "RUN", "out", "--to", "adaptor"], "did you mean adapter?"),
        (
            ["export", "RUN", "out", "--to", "gguf", "--type", "q4_k"],
            "--type: no such type (found 'q4_k'); allowed: f16,",
        ),
        (["export", "RUN", "out", "--to", "adapter", "--type", "f16"], "--type: has no effect on adapter (found f16)"),
        (["export", "RUN", "out", "--to", "adapter", "--base", "x"], "--base: has no effect on adapter"),
        (["eval", "RUN/adapter"], "is an adapter folder, not a run directory"),
        (["train", "nowhere.yaml"], "cannot be read: No such file or directory"),
    ],
)
def test_a_command_that_cannot_be_obeyed_exits_2(run: Path, arguments: list[str], said: str) -> None:
    code, _, err = peftctl(*(argument.replace("RUN", str(run)) for argument in arguments))
    assert code == 2
    assert said in err


def test_an_unexpected_error_is_one_line_and_a_log_without_secrets(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftctl.train import job

    monkeypatch.setenv("HF_TOKEN", "hf_" + "a" * 30)
    monkeypatch.setattr(job, "prepare", lambda *_: 1 / 0 if os.environ["HF_TOKEN"] else None)
    (tmp_path / "r.yaml").write_text(jobs.recipe_text(tmp_path, tiny_model))
    code, out, err = peftctl("train", tmp_path / "r.yaml", "--output", tmp_path / ("hf_" + "a" * 30))
    assert code == 1
    assert len(err.splitlines()) == 1
    log = Path(err.split(" is in ")[1].strip()).read_text()
    assert "ZeroDivisionError" in log
    assert "torch 2." in log
    assert "hf_aaa" not in log + out + err


@pytest.mark.slow
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_who_goes_away_ends_no_training(tmp_path: Path, tiny_model: Path, form: list[str]) -> None:
    (tmp_path / "r.yaml").write_text(jobs.recipe_text(tmp_path, tiny_model))
    command = [sys.executable, "-m", "peftctl.cli", "train", str(tmp_path / "r.yaml"), *form]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(timeout=60), err) == (0, "")
    assert jobs.manifest(tmp_path / "run")["steps"] == 3


def test_with_json_an_error_is_an_object_too(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "r.yaml").write_text(jobs.recipe_text(tmp_path, tiny_model, method={"rank": 0}))
    code, out, err = peftctl("train", tmp_path / "r.yaml", "--json")
    said = json.loads(out)
    assert (code, err) == (2, "")
    assert (said["event"], said["kind"], said["exit_code"]) == ("error", "RecipeError", 2)
    assert [fault["key"] for fault in said["faults"]] == ["method.rank"]
    code, out, err = peftctl("eval", tmp_path / "nowhere", "--json")
    assert (code, err, json.loads(out)["kind"]) == (2, "", "UsageError")


def test_held_out_rows_that_changed_since_training_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    made, _ = jobs.train(tmp_path, tiny_model, data={"train": "train.jsonl", "eval": {"count": 4}})
    rows = tmp_path / "train.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text("".join(lines[1:]))
    code, _, err = peftctl("eval", made)
    assert code == 3
    assert f"{rows} is not the file it was when this run was trained" in err
    assert peftctl("eval", made, "--data", rows)[0] == 0


def test_a_base_with_other_bytes_is_refused_although_its_tensors_look_the_same(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    made, _ = jobs.train(tmp_path, base)
    weights = base / "model.safetensors"
    held = bytearray(weights.read_bytes())
    held[-2] ^= 1
    weights.write_bytes(held)
    for verb in (["eval", made, "--data", tmp_path / "train.jsonl"], ["generate", made, "hi"]):
        code, _, err = peftctl(*verb)
        assert code == 2
        assert "is not the base model this run was trained on" in err


def test_a_base_that_moved_is_named_and_must_be_the_same(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    made, _ = jobs.train(tmp_path, base)
    base.rename(tmp_path / "moved")
    rows = tmp_path / "train.jsonl"
    code, _, err = peftctl("eval", made, "--data", rows)
    assert (code, f"its base model is not at {base} any more" in err, "--base PATH" in err) == (2, True, True)
    assert peftctl("eval", made, "--data", rows, "--base", tmp_path / "moved")[0] == 0
    code, _, err = peftctl("eval", made, "--data", rows, "--base", tmp_path / "nowhere")
    assert (code, err.count("--base: no such file or folder: ")) == (2, 1)
    other = tiny.save(tmp_path / "other", tiny.llama(seed=5))
    code, _, err = peftctl("eval", made, "--data", rows, "--base", other)
    assert code == 2
    assert "is not the base model this run was trained on" in err


def test_weights_cut_short_are_found_before_anything_is_read(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    (tmp_path / "r.yaml").write_text(jobs.recipe_text(tmp_path, base))
    code, _, err = peftctl("train", tmp_path / "r.yaml")
    assert code == 2
    assert f"{weights} is not whole" in err


@pytest.mark.parametrize(
    ("sections", "code", "said"),
    [
        ({"eval": {"choices": ["odd", "perhaps"]}}, 3, "which is none of eval.choices"),
        ({"eval": {"every": 3}}, 2, "eval.every: has no effect in a run of 3 steps (found 3)"),
    ],
)
def test_what_would_fail_after_training_fails_before(
    tmp_path: Path, tiny_model: Path, sections: dict[str, object], code: int, said: str
) -> None:
    data = {"train": "train.jsonl", "eval": "eval.jsonl"}
    tiny.jsonl(tmp_path / "eval.jsonl", tiny.chats(8, seed=1))
    (tmp_path / "r.yaml").write_text(jobs.recipe_text(tmp_path, tiny_model, data=data, **sections))
    found, _, err = peftctl("train", tmp_path / "r.yaml")
    assert found == code, err
    assert said in err
    assert not (tmp_path / "run").exists()


def test_a_resolved_recipe_refuses_rows_that_changed(tmp_path: Path, tiny_model: Path) -> None:
    made, _ = jobs.train(tmp_path, tiny_model)
    assert peftctl("train", made / "resolved.yaml", "--output", tmp_path / "again")[0] == 0
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(rows.read_text().splitlines(keepends=True)[1:]))
    code, _, err = peftctl("train", made / "resolved.yaml", "--output", tmp_path / "third")
    assert code == 3
    assert f"{rows}: is not the file that the recipe pins" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["hi", "--top-p", "0.5"], "--top-p: has no effect at --temperature 0"),
        (["hi", "--seed", "1"], "--seed: has no effect at --temperature 0"),
        (["so " * 600], "PROMPT: more than the model can attend to"),
        ([b"\xff\xfe".decode("utf-8", "surrogateescape")], "PROMPT: not UTF-8 text"),
    ],
)
def test_a_prompt_that_will_not_do_is_refused(run: Path, arguments: list[str], said: str) -> None:
    code, _, err = peftctl("generate", run, *arguments)
    assert code == 2
    assert said in err


def test_a_text_ends_where_the_model_s_context_does(run: Path) -> None:
    code, _, err = peftctl("generate", run, "so " * 160, "--max-new-tokens", 100_000)
    assert code == 0
    assert "tokens fit behind this prompt" in err


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device", "/x"),
        PermissionError(13, "Permission denied", "/x"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError([("a", "b", "[Errno 28] No space left on device: 'b'")]),
    ],
    ids=str,
)
def test_the_machine_s_faults_are_no_bugs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from peftctl.exporters import export

    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(export, "export", fails)
    code, _, err = peftctl("export", run, tmp_path / "out", "--to", "adapter")
    assert code == 4
    assert "cannot be read or written" in err


@pytest.mark.slow
def test_ctrl_c_exits_130_and_a_second_process_is_kept_out(tmp_path: Path, tiny_model: Path) -> None:
    """One long run in a process of its own; while it trains, another is refused; then it is interrupted."""
    (tmp_path / "r.yaml").write_text(jobs.recipe_text(tmp_path, tiny_model, train={"epochs": 100_000}))
    command = [sys.executable, "-m", "peftctl.cli", "train", str(tmp_path / "r.yaml")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        while not process.stdout.readline().startswith("step"):
            assert process.poll() is None, process.communicate()
        code, _, err = peftctl("train", tmp_path / "r.yaml")
        assert code == 4
        assert f"another process is working in {tmp_path / 'run'} (process {process.pid})" in err
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert re.fullmatch(
        r"stopped by SIGINT after step (\d+) of 300000: saved in .*/checkpoints/step-.*\nhint: .*\n", err
    )
    assert not (tmp_path / "run" / "adapter").exists()
