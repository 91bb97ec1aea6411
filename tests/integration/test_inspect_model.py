"""`peftctl inspect` of models: what is printed, what a program reads, what is refused, and how long it takes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from peftctl.cli import app
from peftctl.errors import MachineError
from peftctl.inspection import apart
from peftctl.inspection.apart import Apart, Question
from tests import fake_hub, tiny
from tests.fake_hub import REPO, FakeHub
from tests.unit.test_inspection_model import BERT_BASE, LLAMA_1B, LLAMA_70B, MIXTRAL_8X7B, QWEN2_VL_2B

GGUF = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
MOST_BYTES = 700e6
COMMIT = "a" * 40


def peftctl(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)], env={"COLUMNS": "200"})
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def config(folder: Path, settings: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")
    return folder


def cells(out: str, first: str) -> list[str]:
    """The words of the line that begins so."""
    return next(line.split() for line in out.splitlines() if line.startswith(first))


@pytest.mark.slow
def test_what_to_write_comes_first_and_can_be_pasted(tmp_path: Path) -> None:
    code, out, err = peftctl(config(tmp_path / "it", LLAMA_1B))
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[1] == "LlamaForCausalLM, 16 layers, width 2,048; for causal_lm, seq_cls, token_cls, feature_extraction"
    assert lines[2].startswith("1.24B parameters: feed-forward 65.2%, embeddings 21.3%, attention 13.6%")
    assert "one tensor, tied: model.embed_tokens.weight, lm_head.weight" in lines
    assert "weights: none here (bfloat16 by the config)" in lines
    pasted = [yaml.safe_load(line)["targets"] for line in lines if line.startswith("targets: ")]
    assert pasted[:4] == [
        "all-linear",
        ["q_proj", "k_proj", "v_proj", "o_proj"],
        ["q_proj", "v_proj"],
        ["gate_proj", "up_proj", "down_proj"],
    ]
    assert lines.index(next(line for line in lines if line.startswith("targets"))) < 8
    assert cells(out, "key ")[1:] == ["model.layers.*.self_attn.k_proj", "2,048", "→", "512", "16", "Linear", "16.78M"]
    rank = 2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192)
    assert cells(out, "lora ")[:5] == ["lora", "rank", *(f"{16 * size * rank:,}" for size in (8, 16, 64))]
    assert "head: shares its weight with an embedding, so no adapter can be put on it" in lines


@pytest.mark.slow
def test_a_model_folder_s_weights_are_said_by_dtype_and_size(tmp_path: Path) -> None:
    import torch

    folder = tiny.save(tmp_path / "it", tiny.llama().to(torch.bfloat16))
    code, out, _ = peftctl(folder)
    assert code == 0
    assert "in 1 file, bfloat16" in out
    code, out, _ = peftctl(folder, "--json")
    said = json.loads(out)
    assert said["kind"] == "model"
    assert said["disk"]["by_dtype"] == {"bfloat16": said["architecture"]["parameters"]}
    assert said["disk"]["size_bytes"] == (folder / "model.safetensors").stat().st_size
    assert said["architecture"]["parameters"] == tiny.llama().num_parameters()
    (folder / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    code, out, _ = peftctl(folder)
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("weights: ")]
    assert line.startswith(f"weights: cannot be read: {folder / 'model.safetensors'} is no safetensors file")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "weights: cannot be read: they are pickles (pytorch_model.bin)" in peftctl(folder)[1]
    from safetensors.torch import save_file

    save_file({"model.norm.weight": torch.zeros(3)}, folder / "model.safetensors")
    out = peftctl(folder)[1]
    assert "warning: weights and config differ: 1 tensor of another shape: model.norm.weight is [3], and " in out


@pytest.mark.slow
def test_a_gguf_file_is_inspected_as_the_model_it_becomes() -> None:
    code, out, _ = peftctl(GGUF, "--json")
    assert code == 0
    said = json.loads(out)
    assert said["architecture"]["class_name"] == "LlamaForCausalLM"
    assert said["architecture"]["parameters"] == 134_515_008  # by its authors' table
    assert said["disk"]["by_dtype"] == {"Q4_1": 106168320, "Q8_0": 28311552, "F32": 35136}
    lora = next(count for count in said["architecture"]["counts"] if count["method"] == "lora")
    assert lora["trained"]["16"] == 16 * 30 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))


@pytest.mark.slow
def test_a_gguf_file_of_an_unknown_architecture_lists_its_tensors(tmp_path: Path) -> None:
    from tests.unit.test_inspection_what import gguf, tensor, text

    odd = text("general.architecture") + b"\x08\0\0\0" + text("nonsense")
    tensors = [tensor(f"blk.{n}.x.weight", (4, 2), 0, 32 * n) for n in (0, 1)]
    path = gguf(tmp_path / "m.gguf", [odd], tensors, bytes(512))
    code, out, _ = peftctl(path)
    assert code == 0
    assert cells(out, "blk") == ["blk.*.x.weight", "4", "×", "2", "2", "F32"]
    assert "note: transformers builds no model of this GGUF file" in out
    code, _, err = peftctl(path, "--tree")
    assert code == 2
    assert "builds no model" in err


@pytest.mark.slow
def test_experts_towers_and_encoders_are_said_to_be_such(tmp_path: Path) -> None:
    out = peftctl(config(tmp_path / "mixtral", MIXTRAL_8X7B))[1]
    assert cells(out, "experts  ")[1:7] == ["model.layers.*.mlp.experts.gate_up_proj", "8", "×", "28,672", "×", "4,096"]
    assert "which `targets` does not reach" in out
    out = peftctl(config(tmp_path / "qwen", QWEN2_VL_2B))[1]
    assert cells(out, "vision query")[4:6] == ["model.visual.blocks.*.attn.qkv", "1,280"]
    assert "rows of text never go through model.visual: `targets` leaves that alone" in out
    out = peftctl(config(tmp_path / "bert", BERT_BASE))[1]
    said = "for seq_cls (built as BertForSequenceClassification), token_cls, question_answering, feature_extraction"
    assert f"BertForMaskedLM, 12 layers, width 768; {said}" in out
    assert '[intermediate.dense, "*[0-9].output.dense"]' in out


@pytest.mark.slow
def test_a_tree_and_a_pattern_are_shown_where_asked_for(tmp_path: Path) -> None:
    path = config(tmp_path / "it", LLAMA_1B)
    out = peftctl(path, "--tree")[1]
    assert cells(out, "          q_proj")[:3] == ["q_proj:", "Linear", "67.11M"]
    assert "targets:" not in out
    out = peftctl(path / "config.json", "--match", "*.1?.self_attn.[qv]_proj")[1]
    assert "*.1?.self_attn.[qv]_proj matches 12 linear layers" in out
    assert cells(out, "query")[2:5] == ["6", "of", "16"]
    assert yaml.safe_load(out.splitlines()[-1]) == {"targets": ["*.1?.self_attn.[qv]_proj"]}
    out = peftctl(path, "--match", "qproj")[1]
    assert "near: model.layers.*.self_attn.q_proj" in out
    assert "did you mean q_proj?" in out
    out = peftctl(path, "--match", "norm")[1]
    assert "targets: norm  # of ln_tuning" in out
    assert "of other methods, a recipe is told: method.targets: 'norm' matches model.norm" in out
    out = peftctl(config(tmp_path / "mixtral", MIXTRAL_8X7B), "--match", "experts.gate_up_proj")[1]
    assert "adapted by lora: target_parameters: [experts.gate_up_proj]\n" in out
    code, _, err = peftctl(path, "--match", "q_proj", "--match", "v_proj")
    assert (code, "--match: given 2 times (q_proj, v_proj); allowed: once" in err) == (2, True)
    code, _, err = peftctl(path, "--match", "*a" * 1000)
    assert (code, "allowed: 1 to 300" in err) == (2, True)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A hub with Llama-3.2-1B's config, whose weights are in two files."""
    files = {**fake_hub.sharded(), "config.json": json.dumps(LLAMA_1B).encode()}
    with fake_hub.pointed(FakeHub({COMMIT: files}, {"main": COMMIT}), monkeypatch, tmp_path) as served:
        yield served


@pytest.mark.slow
def test_a_hub_model_is_inspected_without_its_weights(hub: FakeHub) -> None:
    code, out, err = peftctl(REPO, "--revision", "main")
    assert (code, f"fetching {REPO}" in err) == (0, True)
    assert out.startswith(f"{REPO} at {COMMIT}\nLlamaForCausalLM, 16 layers")
    assert "weights: none fetched (bfloat16 by the config)\n" in out
    assert "note:" not in out
    assert "config.json" in hub.served
    assert not [name for name in hub.served if name.endswith(".safetensors")]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base", "x"], "--base: has no effect on a model on this machine"),
        (["--revision", "main"], "--revision: has no effect on a model on this machine"),
    ],
)
def test_a_flag_without_effect_is_refused(tmp_path: Path, arguments: list[str], said: str) -> None:
    code, out, err = peftctl(config(tmp_path / "it", LLAMA_1B), *arguments)
    assert (code, out) == (2, "")
    assert said in err


def test_what_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    code, out, err = peftctl(tmp_path / "no-such")
    assert (code, out) == (2, "")
    assert "no such file or folder" in err
    code, out, _ = peftctl(tmp_path / "no-such", "--json")
    assert json.loads(out)["kind"] == "UsageError"
    assert time.monotonic() - started < 5


def test_a_name_that_the_hub_cannot_be_asked_for_names_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config(tmp_path / "llama-tiny", LLAMA_1B)
    monkeypatch.chdir(tmp_path)
    code, _, err = peftctl("llama-tinny")
    assert code in (2, 4)
    assert "did you mean llama-tiny?" in err


@pytest.mark.slow
def test_a_process_that_left_out_too_much_is_followed_by_one_that_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    started, start = [], apart._start

    def failing(*arguments: str) -> subprocess.Popen[str]:
        started.append(arguments)
        if not arguments:
            return start()
        pipe, command = subprocess.PIPE, [sys.executable, "-c", "import nonsense"]
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    monkeypatch.setattr(apart, "_start", failing)
    with Apart() as process:
        assert process.ask(Question(LLAMA_1B))["class_name"] == "LlamaForCausalLM"
    assert started == [("lean",), ()]


def test_a_process_that_is_ended_from_outside_is_no_fault_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, command = subprocess.PIPE, [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]

    def killed(*_: str) -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    monkeypatch.setattr(apart, "_start", killed)
    with Apart() as process, pytest.raises(MachineError, match="ended from outside"):
        process.ask(Question(LLAMA_1B))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [LLAMA_70B, MIXTRAL_8X7B], ids=["llama-70b", "mixtral"])
def test_a_large_model_takes_little_time_and_memory(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Processor time is held against that of importing torch alone, which a slow machine takes longer for too."""
    path = config(tmp_path / "it", settings)
    peftctl_there = str(Path(sys.executable).with_name("peftctl"))
    measured = [_taken([peftctl_there, "inspect", str(path)]) for _ in range(3)]
    torch = min(_taken([sys.executable, "-c", "import torch"])[0] for _ in range(3))
    assert min(seconds for seconds, _ in measured) < 3 * torch
    assert max(size for _, size in measured) < MOST_BYTES


def _taken(command: list[str]) -> tuple[float, float]:
    """Seconds of processor time, and the most bytes that any of its processes had in memory at once."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); "
        "print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)"
    )
    said = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    seconds, size = said.stdout.split()
    return float(seconds), float(size)
