"""A recipe written and read again is the same recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from peftctl.methods.lora import LoraSettings
from peftctl.recipe import Recipe, dump, dump_resolved, load, resolve
from peftctl.recipe.schema import SECTIONS, DataSettings, EvalSettings, EvalSource, ModelSettings, Source, TrainSettings
from peftctl.run import RESOLVED_BYTES


def recipe(**changes: Any) -> Recipe:
    settings: dict[str, Any] = {
        "model": ModelSettings(name="m"),
        "data": DataSettings(train=(Source(path="t.jsonl"),)),
        "method": LoraSettings(),
        "output": "out",
    }
    return Recipe(**(settings | changes))


def again(written: str, folder: Path) -> Recipe:
    path = folder / "again.yaml"
    path.write_text(written, encoding="utf-8")
    return load(path)


def test_only_what_differs_from_the_defaults_is_written() -> None:
    assert yaml.safe_load(dump(recipe(train=TrainSettings(seed=3)))) == {
        "model": {"name": "m"},
        "task": {"name": "causal_lm"},
        "data": {"train": [{"path": "t.jsonl"}]},
        "method": {"name": "lora"},
        "train": {"seed": 3},
        "output": "out",
    }


def test_a_resolved_dump_has_every_setting_that_has_a_value(tmp_path: Path) -> None:
    made = recipe()
    written = yaml.safe_load(dump_resolved(made, ""))
    assert written["train"] == made.train.model_dump(exclude_none=True)
    assert list(written) == [name for name in (*SECTIONS, "output") if name in written]
    assert again(dump_resolved(made, ""), tmp_path) == made


def test_a_comment_stands_before_each_line(tmp_path: Path) -> None:
    written = dump_resolved(recipe(), "one\ntwo")
    assert written.startswith("# one\n# two\nmodel:\n")
    assert again(written, tmp_path) == recipe()


def test_beside_each_value_stands_who_decided_it(tmp_path: Path) -> None:
    """Precedence: default, the recipe it extends, the recipe, --set, --output; then what resolving decides."""
    (tmp_path / "base.yaml").write_text(
        "model: {name: m, dtype: float32}\ndata: {train: [{path: t.jsonl, limit: 3}], eval: {split: 0.5}}\n"
        "method: {name: lora, rank: 4, dropout: 0.5}\ntrain: {epochs: 1, seed: 1, batch_size: 1, log_every: 1}\n"
        "output: a\n"
    )
    (tmp_path / "r.yaml").write_text(
        "extends: base.yaml\nmethod: {rank: 8, targets: [q, v]}\ntrain: {seed: 2, batch_size: 2}\n"
        'eval: {choices: ["a\\nb", c]}\n'
    )
    made = load(tmp_path / "r.yaml", "out", ["train.batch_size=3", "data.train[0].format=messages", "track.to=[]"])
    assert (made.train.log_every, made.train.seed, made.train.batch_size, made.output) == (1, 2, 3, "out")
    made = resolve.resolve(made)
    made = resolve.resolve_model(made, name="m", commit="c0ffee", max_length=64)
    made = resolve.resolve_memory(resolve.resolve_machine(made, dtype="float32"), micro_batch_tokens=512)
    written = dump_resolved(resolve.resolve_targets(made, ["a.q", "a.v"]), "why")
    assert (
        written.split("\n")
        == f"""\
# why
model:
  name: m  # base.yaml
  revision: c0ffee  # found there
  dtype: float32  # base.yaml
  trust_remote_code: false  # default
task:
  name: causal_lm  # default
data:
  train:
  - path: {tmp_path}/t.jsonl  # base.yaml
    format: messages  # --set
    limit: 3  # base.yaml
    weight: 1.0  # default
  eval:
    format: auto  # default
    split: 0.5  # base.yaml
  learn: assistant  # default
  max_length: 64  # from the model
  overlong: drop  # default for causal_lm
  on_bad_row: error  # default
  max_bad_fraction: 0.01  # default
  streaming: false  # default
method:
  name: lora  # base.yaml
  targets:  # matched in the model
  - a.q
  - a.v
  rank: 8  # r.yaml
  alpha: 16.0  # default for lora
  dropout: 0.5  # base.yaml
  rslora: false  # default
  dora: false  # default
  init: default  # default
  lora_bias: false  # default
  modules_to_save: []  # default
  trainable_tokens: []  # default
  target_parameters: []  # default
train:
  epochs: 1.0  # base.yaml
  batch_size: 3  # --set
  micro_batch_tokens: 512  # from the hardware
  learning_rate: 0.0002  # default for lora
  schedule: cosine  # default
  warmup_ratio: 0.03  # default
  optimizer: adamw  # default
  weight_decay: 0.0  # default
  max_grad_norm: 1.0  # default
  gradient_checkpointing: false  # default
  offload_activations: false  # default
  seed: 2  # r.yaml
  fast:
    packed: true  # default
    loss: true  # default
    lora: true  # default
    norm: true  # default
  log_every: 1  # base.yaml
  log_rows: false  # default
  keep_checkpoints: 2  # default
  deterministic: false  # default
eval:
  best: false  # default
  choices:  # r.yaml
  - "a\\nb"
  - c
track:
  to: []  # --set
  project: peftctl  # default
output: out  # --output
""".split("\n")
    )
    assert again(written, tmp_path) == resolve.resolve_targets(made, ["a.q", "a.v"])


def test_what_replaces_a_whole_source_takes_its_settings_origins_away(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "model: m\ndata: {train: [{path: a, format: messages, limit: 3}]}\nmethod: lora\noutput: o\n"
    )
    assert "  - path: b  # --set\n    format: auto  # default\n" in dump_resolved(
        load(tmp_path / "r.yaml", overrides=["data.train[0]=null", "data.train[0]=b"]), ""
    )
    assert "  - path: b  # --set\n    format: auto  # default\n" in dump_resolved(
        load(tmp_path / "r.yaml", overrides=["data.train=b"]), ""
    )


@pytest.mark.parametrize(
    "text",
    [
        "no", "Yes", "null", "~", "3", "0x10", "1e-5", "1E5", "-1e5", "+2e3", "1_0e5", "1.5", ".inf", "2026-01-01",
        "1:30", "=", "<<", "*a", "&a", "!x", "- a", "a: b", "a #b", "#a", "'", '"', "a\nb", " a ", "\ta", "é", "😀",
        "\u2028", "\x85", "{a}", "[a]", "|", ">", "%a", "@a", "`a", "a" * 300, "a b " * 60, "---", "...", "\ufeff",
    ],
)  # fmt: skip
def test_text_comes_back_as_text_whatever_it_looks_like(tmp_path: Path, text: str) -> None:
    made = recipe(
        model=ModelSettings(name=text),
        data=DataSettings(train=(Source(path=text),), eval=EvalSource(path=text)),
        method=LoraSettings(targets=(text, text)),
        eval=EvalSettings(choices=(text, "other")),
        output=f"x{text}",
    )
    assert again(dump(made), tmp_path) == made
    assert again(dump_resolved(made, ""), tmp_path) == made


@pytest.mark.parametrize("rate", [1e-5, 2e-4, 1e-300, 1e300, 0.1 + 0.2, 5e-324, 3.0])
def test_a_number_comes_back_to_the_last_bit(tmp_path: Path, rate: float) -> None:
    made = recipe(train=TrainSettings(learning_rate=rate))
    assert again(dump(made), tmp_path).train.learning_rate == rate


def test_no_anchors_are_written() -> None:
    name = "a/path/that/is/used/twice"
    source = Source(path=name)
    assert "&" not in dump(recipe(data=DataSettings(train=(source, source), eval=EvalSource(path=name))))


def test_a_recipe_resolved_for_a_model_with_very_many_modules_is_read_again(tmp_path: Path) -> None:
    """A mixture of 64 experts in 60 layers: 3840 names."""
    names = tuple(f"model.layers.{layer}.mlp.experts.{e}.up_proj" for layer in range(60) for e in range(64))
    made = recipe(method=LoraSettings(targets=names))
    path = tmp_path / "resolved.yaml"
    path.write_text(dump_resolved(made, ""))
    assert load(path, max_bytes=RESOLVED_BYTES) == made
