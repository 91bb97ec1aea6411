"""check, schema and init as a user types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from peftctl.cli import app
from peftctl.methods import METHODS, OWN
from peftctl.recipe import load
from tests import jobs, tiny

GOOD = "model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\n"


def peftctl(*arguments: object, **kwargs: Any) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], **kwargs)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(autouse=True)
def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_check_says_ok_of_each_good_recipe_and_shows_every_fault_of_a_bad_one() -> None:
    Path("good.yaml").write_text(GOOD)
    Path("bad.yaml").write_text(GOOD.replace("lora", "{name: lora, rnak: 8}") + "train: {epochs: 0}\n")
    code, out, err = peftctl("check", "good.yaml", "bad.yaml")
    assert code == 2
    assert out == "good.yaml: ok\n"
    assert err == (
        "bad.yaml:4:22: error: method.rnak: no such setting; "
        "allowed: name, targets, rank, alpha, dropout, layers, rank_pattern, alpha_pattern, rslora, dora, init, "
        "loraplus, lora_bias, modules_to_save, trainable_tokens, target_parameters; did you mean rank?\n"
        "    4 | method: {name: lora, rnak: 8}\n"
        "      |                      ^\n"
        "bad.yaml:6:9: error: train.epochs: out of range (found 0); allowed: more than 0\n"
        "    6 | train: {epochs: 0}\n"
        "      |         ^\n"
    )


def test_check_json_is_for_programs() -> None:
    Path("bad.yaml").write_text(GOOD + "train: {epochs: 1, max_steps: 2}\n")
    code, out, err = peftctl("check", "bad.yaml", "--json")
    assert (code, err) == (2, "")
    assert json.loads(out) == [
        {
            "file": "bad.yaml", "line": 6, "column": 9, "key": "train.epochs",
            "found": "", "allowed": "", "nearest": "",
            "problem": "and train.max_steps both say how long to train",
            "also": {"file": "bad.yaml", "line": 6, "column": 20},
        }
    ]  # fmt: skip


def test_check_and_train_take_the_same_overrides_with_the_same_faults() -> None:
    Path("good.yaml").write_text(GOOD)
    for verb in ("check", "train"):
        code, _, err = peftctl(verb, "good.yaml", "--set", "train.epochs=none", "--set", "method.rnak=3")
        assert code == 2
        assert err.splitlines() == [
            "--set method.rnak=3: error: method.rnak: no such setting; "
            "allowed: name, targets, rank, alpha, dropout, layers, rank_pattern, alpha_pattern, rslora, dora, init, "
            "loraplus, lora_bias, modules_to_save, trainable_tokens, target_parameters; did you mean rank?",
            "--set train.epochs=none: error: train.epochs: must be a number (found 'none')",
        ]


def test_check_judges_the_models_kind_against_the_task() -> None:
    Path("model").mkdir()
    Path("model/config.json").write_text('{"model_type": "vit"}')
    Path("r.yaml").write_text(GOOD.replace("org/model", "./model"))
    code, _, err = peftctl("check", "r.yaml")
    assert code == 2
    assert "model.name: transformers 5.23.0 has no causal_lm model of this type (found vit)" in err
    Path("model/config.json").write_text('{"model_type": "llama"}')
    assert peftctl("check", "r.yaml")[0] == 0


def test_the_schema_takes_what_check_takes_and_refuses_typos() -> None:
    from jsonschema import Draft202012Validator

    code, out, _ = peftctl("schema")
    assert code == 0
    schema = json.loads(out)
    Draft202012Validator.check_schema(schema)
    judge = Draft202012Validator(schema)
    recipes = Path(__file__).parents[2] / "recipes"
    for path in recipes.rglob("*.yaml"):
        judge.validate(yaml.safe_load(path.read_text()) | {"train": {"learning_rate": 0.001}})
    good = yaml.safe_load(GOOD)
    judge.validate(good)
    judge.validate({"extends": "base.yaml"})
    judge.validate(good | {"method": {"name": "lora", "targets": ["q_proj"]}, "data": {"train": [{"path": "a.jsonl"}]}})
    for wrong in (
        {"trian": {}},
        {"method": "lroa"},
        {"method": {"name": "lora", "rnak": 8}},
        {"method": {"name": "lora", "rank": 0}},
        {"data": {"train": {"path": "a", "format": "chat"}}},
        {"task": {"name": "casual_lm"}},
        {"train": {"schedule": "cosin"}},
    ):
        assert not judge.is_valid(good | wrong), wrong
    assert not judge.is_valid({"model": "x"})


def test_every_setting_in_the_schema_says_what_it_means() -> None:
    schema = json.loads(peftctl("schema")[1])
    silent = [
        f"{name}.{key}"
        for name, section in schema["$defs"].items()
        for key, setting in section["properties"].items()
        if not setting.get("description") and key != "name"
    ]
    assert silent == []


def test_init_writes_a_recipe_that_passes_check_and_trains(tmp_path: Path) -> None:
    tiny.save(Path("model"))
    Path("rows").mkdir()
    tiny.jsonl(Path("rows/train.jsonl"), tiny.chats(40))
    code, out, err = peftctl("init", "first.yaml", "--model", "./model", "--data", "rows/train.jsonl")
    assert (code, err) == (0, "")
    assert out == "first.yaml: written; rows/train.jsonl holds messages rows\nnext: peftctl train first.yaml\n"
    assert peftctl("check", "first.yaml") == (0, "first.yaml: ok\n", "")
    recipe = load(Path("first.yaml"))
    assert recipe.data.train[0].path == "rows/train.jsonl"
    assert recipe.output == "runs/first"
    # The comments' claims are the code's defaults.
    text = Path("first.yaml").read_text()
    assert "lora's defaults: targets all-linear, rank 16, alpha 32, dropout 0." in text
    assert peftctl("train", "first.yaml", "--set", "train.max_steps=2", "--set", "train.epochs=null")[0] == 0
    assert jobs.manifest(tmp_path / "runs" / "first")["steps"] == 2


def test_init_finds_the_format_and_refuses_rows_of_none() -> None:
    tiny.jsonl(Path("pc.jsonl"), [{"prompt": "a", "completion": "b"}])
    assert (
        "pc.jsonl holds prompt_completion rows" in peftctl("init", "pc.yaml", "--model", "o/m", "--data", "pc.jsonl")[1]
    )
    tiny.jsonl(Path("odd.jsonl"), [{"question": "a"}])
    code, _, err = peftctl("init", "odd.yaml", "--model", "o/m", "--data", "odd.jsonl")
    assert code == 3
    assert "odd.jsonl:1: the columns question fit no format for causal_lm" in err
    Path("broken.jsonl").write_text("{")
    code, _, err = peftctl("init", "odd.yaml", "--model", "o/m", "--data", "broken.jsonl")
    assert code == 3
    assert "broken.jsonl:1: not JSON" in err
    assert not Path("odd.yaml").exists()


def test_init_refuses_a_method_of_which_more_must_be_said() -> None:
    tiny.jsonl(Path("rows.jsonl"), tiny.chats(3))
    code, _, err = peftctl("init", "r.yaml", "--model", "o/m", "--data", "rows.jsonl", "--method", "xlora")
    assert code == 2
    assert "method.adapters: is missing, which xlora needs" in err
    assert not Path("r.yaml").exists()


@pytest.mark.parametrize("method", [*(name for name in OWN if not METHODS[name].settings.needed), "boft", "vera"])
def test_init_writes_a_recipe_of_any_method(method: str) -> None:
    tiny.jsonl(Path("rows.jsonl"), tiny.chats(3))
    assert peftctl("init", "r.yaml", "--model", "o/m", "--data", "rows.jsonl", "--method", method)[0] == 0
    assert load(Path("r.yaml")).method.name == method
    [said] = [line for line in Path("r.yaml").read_text().splitlines() if line.startswith(f"# {method}'s defaults: ")]
    assert len(said) > len(f"# {method}'s defaults: .")


def test_init_holds_nothing_out_of_a_single_row() -> None:
    tiny.jsonl(Path("one.jsonl"), tiny.chats(1))
    assert peftctl("init", "one.yaml", "--model", "o/m", "--data", "one.jsonl")[0] == 0
    assert load(Path("one.yaml")).data.eval is None


def test_init_never_overwrites_and_asks_only_where_there_is_somebody() -> None:
    tiny.jsonl(Path("rows.jsonl"), tiny.chats(3))
    Path("recipe.yaml").write_text("mine")
    code, _, err = peftctl("init", "--model", "o/m", "--data", "rows.jsonl")
    assert code == 2
    assert "recipe.yaml: exists already" in err
    assert Path("recipe.yaml").read_text() == "mine"
    code, _, err = peftctl("init", "other.yaml")
    assert code == 2
    assert "--model, --data: must be given where there is nobody to ask" in err


def test_init_asks_for_what_was_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    import typer

    tiny.jsonl(Path("rows.jsonl"), tiny.chats(3))
    # What is wrong is asked again: there is no such file, and no such method.
    answers = iter(["org/model", "rose.jsonl", "rows.jsonl", "causal_lm", "lroa", "lora", "runs/asked"])
    monkeypatch.setattr(typer, "prompt", lambda *_, **__: next(answers))
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda _: True})())
    from peftctl.cli.recipes import init

    init(Path("asked.yaml"))
    assert load(Path("asked.yaml")).model.name == "org/model"
    assert next(answers, None) is None


def recipe_on(folder: str, method: str, more: str = "") -> Path:
    path = Path("r.yaml")
    path.write_text(f"model: {folder}\ndata: {{train: rows.jsonl}}\nmethod: {method}\noutput: runs/x\n{more}")
    return path


@pytest.mark.parametrize(
    ("method", "place", "said"),
    [
        ("{name: lora, layers: [0, 7]}", "4:22", "method.layers: there is no layer 7 (found 7); allowed: 0 to 1"),
        (
            "{name: lora, targets: [q_prj]}",
            "4:22",
            "method.targets: 'q_prj' matches no module; targets of this method here: ",
        ),
        ("{name: lora, rank_pattern: {q_prj: 2}}", "4:22", "method.rank_pattern: 'q_prj' matches no target; "),
        ("{name: lora, modules_to_save: lm_haed}", "4:22", "method.modules_to_save: 'lm_haed' matches no module; "),
        (
            "{name: lora, trainable_tokens: [900, so long, 3, 901]}",
            "4:22",
            "method.trainable_tokens: there is no token 900 or 901; allowed: 0 to 263",
        ),
        (
            "{name: trainable_tokens, token_indices: [900, 901]}",
            "4:34",
            "no such token (found 900, 901); allowed: 0 to",
        ),
        ("{name: oft, oft_block_size: 7}", "4:21", "method.oft_block_size: does not divide the inputs of every target"),
    ],
)
def test_check_with_the_model_finds_what_the_text_cannot_tell(method: str, place: str, said: str) -> None:
    tiny.save(Path("model"))
    path = recipe_on("./model", method)
    path.write_text("# yaml\n" + path.read_text())
    assert peftctl("check", path) == (0, "r.yaml: ok\n", "")
    code, out, err = peftctl("check", "--model", path)
    assert (code, out) == (2, "")
    assert err.startswith(f"r.yaml:{place}: error: method.")
    assert said in err


def test_every_token_that_is_none_is_named_at_once() -> None:
    tiny.save(Path("model"))
    path = recipe_on("./model", "{name: lora, trainable_tokens: [900, so long, 3, as well]}")
    faults = json.loads(peftctl("check", "--model", "--json", path)[1])
    assert [fault["problem"].partition("; ")[0] for fault in faults] == [
        "'so long' is 7 tokens of this model", "'as well' is 7 tokens of this model", "there is no token 900",
    ]  # fmt: skip


def test_check_with_the_model_refuses_a_method_that_it_does_not_take() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    tiny.save(Path("model"), MambaForCausalLM(MambaConfig(vocab_size=264, hidden_size=32, num_hidden_layers=2)))
    path = recipe_on("./model", "adaption_prompt")
    assert peftctl("check", path)[0] == 0
    code, _, err = peftctl("check", "--model", path)
    assert code == 2
    assert err.startswith("r.yaml:3:1: error: method.name: adaption_prompt cannot go into MambaForCausalLM: ")


def test_check_with_the_model_says_ok_of_what_trains_and_reads_no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftctl.model import load

    monkeypatch.setattr(load, "load_model", lambda *_: pytest.fail("weights were loaded"))
    tiny.save(Path("model"))
    assert peftctl("check", "--model", recipe_on("./model", "lora")) == (0, "r.yaml: ok\n", "")


def test_check_with_the_model_says_that_it_left_a_gguf_file_alone() -> None:
    Path("m.gguf").write_bytes(b"GGUF")
    code, out, err = peftctl("check", "--model", recipe_on("m.gguf", "lora"))
    assert (code, out) == (0, "r.yaml: ok\n")
    assert err == "m.gguf: not tried, since a GGUF file has to be converted first, as train does\n"


@pytest.mark.parametrize(
    ("model", "init_from", "said"),
    [
        ("./modle", None, ["model.name: no such file or folder (found './modle'); did you mean model?"]),
        ("lost.gguf", None, ["model.name: no such file or folder (found 'lost.gguf')"]),
        ("./runs", None, ["model.name: holds no config.json, so it is no model folder (found './runs')"]),
        ("./runs/one", None, ["model.name: holds an adapter, not a model (found './runs/one')"]),
        ("model", "runs/on", ["train.init_from: no such folder (found 'runs/on'); did you mean one?"]),
        ("model", "model", ["train.init_from: is neither a finished run nor an adapter's folder (found 'model')"]),
        ("model", "runs/one", []),
        ("org/model", None, []),
    ],
)
def test_check_names_models_and_runs_that_are_not_there(model: str, init_from: str | None, said: list[str]) -> None:
    for made in ("model/config.json", "runs/one/adapter_config.json"):
        Path(made).parent.mkdir(parents=True)
        Path(made).write_text("{}")
    path = recipe_on(model, "lora", f"train: {{init_from: {init_from}}}\n" if init_from else "")
    code, _, err = peftctl("check", path)
    assert code == (2 if said else 0)
    assert [line.split("error: ")[1] for line in err.splitlines() if "error: " in line] == said
