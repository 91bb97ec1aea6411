"""No setting is decoration: change any one of them and something observable changes, or the change is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from peftctl.atomic import sha256
from peftctl.errors import PeftctlError
from peftctl.events import Events
from peftctl.methods import METHODS, OWN, experts
from peftctl.recipe import load
from peftctl.recipe.schema import SECTIONS, EvalSource, FastSettings, QuantizationSettings, Source
from peftctl.train import job
from tests import tiny

BASE: dict[str, Any] = {
    "model": {"name": "./model", "dtype": "float32"},
    "data": {"train": [{"path": "train.jsonl"}], "eval": {"path": "eval.jsonl"}, "max_length": 60},
    "method": {"name": "lora", "rank": 4},
    "train": {"max_steps": 4, "batch_size": 4, "micro_batch_tokens": 128, "learning_rate": 5e-3, "max_grad_norm": 0.1},
    "output": "run",
}

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
)

# For every setting a value other than the base recipe's; where what shows is a refusal, a part of its message.
CHANGES: dict[str, Any] = {
    "model.name": "./other",
    "model.revision": ("v2", "has no effect on a local model"),
    "model.dtype": "bfloat16",
    "task.name": ("seq2seq", "no such task"),
    "task.labels": (["a", "b"], "has no effect on causal_lm"),
    "task.problem": ("single", "has no effect on causal_lm"),
    "task.pooling": ("cls", "has no effect on causal_lm"),
    "task.temperature": (0.1, "has no effect on causal_lm"),
    "task.no_answer": (True, "has no effect on causal_lm"),
    "task.stride": (16, "has no effect on causal_lm"),
    "task.max_answer_tokens": (5, "has no effect on causal_lm"),
    "data.train": [{"path": "other.jsonl"}],
    "data.train[0].path": "other.jsonl",
    "data.train[0].format": ("prompt_completion", "no column 'prompt'"),
    "data.train[0].columns": ({"messages": "chats"}, "no column 'chats', which columns.messages names"),
    "data.train[0].filter": "'so' in messages[0].content",
    "data.train[0].limit": 5,
    "data.train[0].config": ("main", "is no hub data set"),
    "data.train[0].hub_split": ("test", "is no hub data set"),
    "data.train[0].revision": ("v2", "is no hub data set"),
    "data.train[0].weight": 0.5,
    "data.train[0].sha256": ("0" * 64, "is not the file that the recipe pins"),
    "data.eval": None,
    "data.eval.path": "other.jsonl",
    "data.eval.format": ("prompt_completion", "no column 'prompt'"),
    "data.eval.columns": ({"messages": "chats"}, "no column 'chats', which columns.messages names"),
    "data.eval.filter": "'so' in messages[0].content",
    "data.eval.limit": 3,
    "data.eval.config": ("main", "is no hub data set"),
    "data.eval.hub_split": ("test", "is no hub data set"),
    "data.eval.revision": ("v2", "is no hub data set"),
    "data.eval.sha256": ("0" * 64, "is not the file that the recipe pins"),
    "data.eval.split": (0.5, "both say which rows are held out"),
    "data.eval.count": (3, "both say which rows are held out"),
    "data.template": TEMPLATE,
    "data.max_length": 45,
    "data.overlong": "truncate_end",
    "data.max_bad_fraction": (0.5, "has no effect without on_bad_row: drop"),
    "data.streaming": True,
    "method.name": ("lroa", "no such method"),
    "model.quantization": {"bits": 4},
    "model.quantization.bits": 8,
    "model.quantization.type": "fp4",
    "model.quantization.double_quant": False,
    "method[lora].targets": ["q_proj"],
    "method[lora].rank": 2,
    "method[lora].alpha": 1.0,
    "method[lora].dropout": 0.5,
    "method[lora].layers": [0],
    "method[lora].rank_pattern": {"q_proj": 2},
    "method[lora].alpha_pattern": {"q_proj": 1.0},
    "method[lora].rslora": True,
    "method[lora].dora": True,
    "method[lora].init": "pissa",
    "method[lora].loraplus": 16.0,
    "method[lora].lora_bias": True,
    "method[lora].modules_to_save": ["norm"],
    "method[lora].trainable_tokens": [220],
    "method[lora].target_parameters": (["gate_up_proj"], "'gate_up_proj' matches no experts' weight"),
    "method[ia3].targets": ["k_proj", "v_proj"],
    "method[ia3].feedforward": ["v_proj"],
    "method[adalora].targets": ["q_proj"],
    "method[adalora].rank": 2,
    "method[adalora].initial_rank": 8,
    "method[adalora].alpha": 1.0,
    "method[adalora].dropout": 0.5,
    "method[adalora].start": 0.5,
    "method[adalora].settle": 0.5,
    "method[adalora].orthogonal": 0.0,
    "method[loha].targets": ["q_proj"],
    "method[loha].rank": 2,
    "method[loha].alpha": 1.0,
    "method[loha].rank_dropout": 0.5,
    "method[loha].module_dropout": 0.5,
    "method[lokr].targets": ["q_proj"],
    "method[lokr].rank": 1,
    "method[lokr].alpha": 1.0,
    "method[lokr].factor": 2,
    "method[lokr].rank_dropout": 0.5,
    "method[lokr].module_dropout": 0.5,
    "method[prompt_tuning].tokens": 5,
    "method[prompt_tuning].init": "random",
    "method[prompt_tuning].text": ("odd or even?", "needed there alone"),
    "method[p_tuning].tokens": 5,
    "method[p_tuning].hidden": 16,
    "method[p_tuning].network": "lstm",
    "method[p_tuning].layers": (2, "has no effect with network: mlp"),
    "method[p_tuning].dropout": (0.5, "has no effect but between the layers of an LSTM"),
    "method[ln_tuning].targets": ["input_layernorm"],
    "method[prefix_tuning].tokens": 5,
    "method[prefix_tuning].init": "random",
    "method[prefix_tuning].text": ("odd or even?", "needed there alone"),
    "method[prefix_tuning].hidden": 16,
    "method[xlora].adapters": ["second", "first"],
    "method[xlora].layerwise": False,
    "method[xlora].depth": 3,
    "method[xlora].hidden": 16,
    "method[xlora].dropout": 0.5,
    "method[xlora].softmax": "none",
    "method[xlora].temperature": 2.0,
    "method[xlora].top_k": 1,
    "method[xlora].scale": 2.0,
    "method[xlora].first_pass": 0.5,
    "method[xlora].train_adapters": True,
    "train.epochs": (1.0, "both say how long to train"),
    "train.max_steps": 3,
    "train.batch_size": 5,
    "train.micro_batch_tokens": 64,
    "train.learning_rate": 1e-3,
    "train.schedule": "constant",
    "train.warmup_ratio": 0.5,
    "train.optimizer": "sgd",
    "train.weight_decay": 0.5,
    "train.max_grad_norm": 0.01,
    "train.gradient_checkpointing": True,
    "train.offload_activations": (True, "has no effect without gradient_checkpointing"),
    "train.seed": 7,
    "train.log_every": 2,
    "train.log_rows": True,
    "train.save_every": 2,
    "train.max_time": ("0s", "stopped by train.max_time: 0s after step 1 of 4"),
    "train.init_from": ("nowhere", "no such folder"),
    "train.fast.packed": False,
    "train.fast.loss": False,
    "train.fast.lora": False,
    "train.fast.norm": False,
    "data.learn": "all",
    "eval.every": 2,
    "eval.best": (True, "has no effect without eval.every"),
    "eval.choices": ["odd", "even"],
    "eval.generate": {"max_new_tokens": 2},
    "track.to": ["tensorboard"],
    "track.project": ("triage", "has no effect without a tracker"),
    "output": "elsewhere",
}
# What a method's settings are changed in, where it is not the base recipe's.
BASE_METHODS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4}, "ia3": {}, "adalora": {"rank": 4}, "loha": {"rank": 4}, "lokr": {"rank": 2},
    "ln_tuning": {}, "prompt_tuning": {"tokens": 4}, "p_tuning": {"tokens": 4}, "prefix_tuning": {"tokens": 4},
    "xlora": {"adapters": ["first", "second"], "depth": 2, "hidden": 8, "dropout": 0.0},
}  # fmt: skip
TIMED = {"cached", "seconds", "size_bytes", "seconds_per_step", "tokens_per_s", "peak_memory_bytes"}


def settings() -> set[str]:
    """Every setting of the schema by its dotted name. Those of PEFT's other methods are PEFT's own fields."""
    names = {"output"}
    for section, declared in SECTIONS.items():
        if section != "method":
            names |= {f"{section}.{name}" for name in declared.model_fields}
    names |= {f"model.quantization.{name}" for name in QuantizationSettings.model_fields}
    names |= {f"method[{method}].{name}" for method in OWN for name in METHODS[method].settings.model_fields} - {
        f"method[{method}].name" for method in OWN
    } | {"method.name"}
    names = names - {"train.fast"} | {f"train.fast.{name}" for name in FastSettings.model_fields}
    names |= {f"data.train[0].{name}" for name in Source.model_fields}
    return names | {f"data.eval.{name}" for name in EvalSource.model_fields}


def observed(folder: Path, recipe: dict[str, Any], patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a run leaves and says, but for the time it took and the recipe itself."""
    from peftctl.fast import rotary

    passes = []
    attend = rotary.attend

    def counted(q: Any, *others: Any) -> Any:
        passes.append(tuple(q.shape))
        return attend(q, *others)

    patch.setattr(rotary, "attend", counted)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    heard: list[dict[str, Any]] = []
    run = job.train(load(folder / "recipe.yaml"), "", Events(lambda event: heard.append(dict(event))))
    weights = [sha256(file) for file in sorted((run / "adapter").rglob("*.safetensors"))]
    said = [{key: value for key, value in event.items() if key not in TIMED} for event in heard]
    left = sorted(path.relative_to(run).as_posix() for path in run.rglob("*") if "events.out" not in path.name)
    return {"run": run.name, "weights": weights, "said": json.dumps(said), "left": left, "passes": passes}


def filled(folder: Path) -> Path:
    tiny.save(folder / "model")
    tiny.save(folder / "other", tiny.llama(seed=1))
    tiny.jsonl(folder / "train.jsonl", tiny.chats(24))
    tiny.jsonl(folder / "eval.jsonl", tiny.chats(8, seed=1))
    tiny.jsonl(folder / "other.jsonl", tiny.chats(24, seed=2))
    for seed, name in enumerate(("first", "second")):
        generator = torch.Generator().manual_seed(seed)
        shapes = {f"model.layers.{layer}.self_attn.q_proj": (2, 32) for layer in range(2)}
        matrices = {
            layer: (torch.randn(*shape, generator=generator), torch.randn(*shape[::-1], generator=generator) / 8)
            for layer, shape in shapes.items()
        }
        experts.write(folder / name, {"r": 2, "lora_alpha": 2}, matrices, task_type="CAUSAL_LM")
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, to change."""
    monkeypatch.chdir(tmp_path)
    return filled(tmp_path)


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def shared(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in which only runs are made, and removed."""
    monkeypatch.chdir(shared_folder)
    yield shared_folder
    for run in ("run", "elsewhere"):
        shutil.rmtree(shared_folder / run, ignore_errors=True)


@pytest.fixture(scope="module")
def seen() -> dict[str, dict[str, Any]]:
    """What was observed of each base recipe."""
    return {}


def base(name: str) -> dict[str, Any]:
    """The recipe in which the setting is changed: of its method, and quantised where it is about that."""
    recipe: dict[str, Any] = json.loads(json.dumps(BASE))
    if name.startswith("method["):
        method = name[len("method[") : name.index("]")]
        recipe["method"] = {"name": method, **BASE_METHODS[method]}
    if name.startswith("model.quantization."):
        recipe["model"]["quantization"] = {"bits": 4}
    return recipe


def changed(name: str, value: Any) -> dict[str, Any]:
    recipe = base(name)
    *parents, last = re.sub(r"\[\w+\]", lambda at: ".0" if at[0] == "[0]" else "", name).split(".")
    at: Any = recipe
    for part in parents:
        at = at[int(part)] if isinstance(at, list) else at.setdefault(part, {})
    at[last] = value
    return recipe


def test_every_setting_of_the_schema_is_changed_here() -> None:
    # What compile changes is time alone; tests/unit/test_fast_paths.py sees it used. on_bad_row needs a bad row,
    # keep_checkpoints several checkpoints: tests/integration/test_resume.py.
    elsewhere = {"train.fast.compile", "train.keep_checkpoints"}
    assert settings() == {*CHANGES, *elsewhere, "model.trust_remote_code", "data.on_bad_row", "train.deterministic"}


def test_deterministic_has_torch_refuse_the_rest(folder: Path) -> None:
    heard: list[bool] = []
    for wanted in (False, True):
        (folder / "recipe.yaml").write_text(yaml.safe_dump(changed("train.deterministic", wanted)))
        listen = Events(lambda event: heard.append(torch.are_deterministic_algorithms_enabled()))
        shutil.rmtree(folder / "run", ignore_errors=True)
        job.train(load(folder / "recipe.yaml"), "", listen)
        assert set(heard) == {wanted}
        heard.clear()
    assert not torch.are_deterministic_algorithms_enabled()


def test_on_bad_row_says_what_becomes_of_a_bad_row(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_text(rows + "{\n")
    with pytest.raises(PeftctlError, match=r"train\.jsonl:25: not JSON"):
        observed(folder, BASE, monkeypatch)
    dropping = changed("data.on_bad_row", "drop")
    with pytest.raises(PeftctlError, match=r"1 of 25 rows are bad \(4\.0%; 1 broken JSON\)"):
        observed(folder, dropping, monkeypatch)
    dropping["data"]["max_bad_fraction"] = 0.05
    assert '"broken JSON": 1' in observed(folder, dropping, monkeypatch)["said"]


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.parametrize("name", CHANGES)
def test_changing_it_changes_something_observable(
    name: str, shared: Path, seen: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    value, refusal = CHANGES[name] if isinstance(CHANGES[name], tuple) else (CHANGES[name], "")
    recipe = changed(name, value)
    if refusal:
        with pytest.raises(PeftctlError, match=refusal):
            observed(shared, recipe, monkeypatch)
        return
    kind = json.dumps(base(name))
    for _ in range(0 if kind in seen else 2):
        with monkeypatch.context() as patch:
            found = observed(shared, base(name), patch)
        shutil.rmtree(shared / "run")
        assert seen.setdefault(kind, found) == found  # what is observed depends on nothing but the recipe
    with monkeypatch.context() as patch:
        assert observed(shared, recipe, patch) != seen[kind]


def test_trust_remote_code_lets_a_models_own_code_run_and_nothing_else_does(folder: Path) -> None:
    config = json.loads((folder / "model" / "config.json").read_text())
    config |= {
        "model_type": "own_llama",
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnLM"},
    }
    (folder / "model" / "config.json").write_text(json.dumps(config))
    (folder / "model" / "own.py").write_text(
        "from pathlib import Path\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(folder / 'ran')!r}).touch()\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n"
        "class OwnLM(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    (folder / "recipe.yaml").write_text(yaml.safe_dump(BASE))
    with pytest.raises(PeftctlError, match=r"model\.name: the config of"):
        job.train(load(folder / "recipe.yaml"), "", Events())
    assert not (folder / "ran").exists()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(changed("model.trust_remote_code", True)))
    job.train(load(folder / "recipe.yaml"), "", Events())
    assert (folder / "ran").exists()
