"""A right recipe with something broken in it: it loads all the same, or its faults say where to look."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from peftctl.errors import Fault, RecipeError
from peftctl.recipe import check, dump, dump_resolved, load, resolve

QUICKSTART = (Path(__file__).parents[2] / "recipes" / "quickstart.yaml").read_text("utf-8")
BLOCK = """\
# Every section, each setting on a line of its own.
model:
  name: org/model
  revision: main
  dtype: bfloat16
  trust_remote_code: false
task:
  name: causal_lm
data:
  train:
    - path: a.jsonl
      format: messages
      limit: 100
    - b.jsonl
  eval:
    path: e.jsonl
    format: prompt_completion
    limit: 10
  max_length: 1024
method:
  name: lora
  rank: 8
  alpha: 16.0
  dropout: 0.05
  targets: [q_proj, "*.v_proj"]
train:
  epochs: 1.5
  batch_size: 8
  micro_batch_tokens: 4096
  learning_rate: 1e-4
  schedule: linear
  warmup_ratio: 0.1
  optimizer: adamw_8bit
  weight_decay: 0.01
  max_grad_norm: 1.0
  gradient_checkpointing: true
  seed: 7
  log_every: 10
eval:
  every: 50
  choices:
    - 'yes'
    - 'no'
track:
  to: [tensorboard]
  project: "mine"
output: runs/block
"""
FLOW = """\
{model: {name: ./m, dtype: auto}, task: causal_lm, data: {train: [a.jsonl, {path: "b.jsonl", limit: 3}],
 eval: {split: 0.1}}, method: {name: lora, targets: all-linear}, train: {max_steps: 30, learning_rate: 2.5e-4},
 eval: {every: 5}, track: {to: [aim], project: p}, output: 'runs/flow'}
"""
ANCHORED = """\
model: &m org/model
task: causal_lm
data:
  train:
    - &rows {path: a.jsonl, format: messages}
    - {<<: *rows, path: é.jsonl}
  eval: {<<: [*rows], path: e.jsonl, limit: 5}
method: {name: lora, rank: 0x8}
train:
  epochs: 2
  seed: 3
eval: {choices: [&spam spam, ham]}
track: {to: [wandb], project: *spam}
output: |-
  runs/anchored
"""
TEXTS = [QUICKSTART, BLOCK, FLOW, ANCHORED]

VALUES = st.sampled_from(
    [None, True, False, 0, -1, 3, 10**30, 0.5, -0.0, 1e300, "", " ", "no", "lora", "1e-5", "a" * 500, "é", "${env:X}",
     "${env:PEFTCTL_NO_SUCH}", "~", "../x", [], [None], ["a", "a"], [["a"]], {}, {"name": 3}, {"path": {}}, {"": ""}]
).map(copy.deepcopy)  # fmt: skip
KEYS = ["name", "path", "epochs", "eval", "train", "data", "model", "extends", "zzz", "", "<<", "lr", "3"]
PIECES = st.sampled_from(
    [*":-#&*!|>%@`'\"{}[],?~ \t\n\r\0\x01\x7f\x85\u2028\ufeff\ufffe0e.$_", "é", "😀", "${env:", "---\n", "...\n",
     "<<: ", "*rows", "&rows ", "!!int ", "!!float ", "!!bool ", "!!binary ", "!x ", "? ", "- ", "\n  ",
     "\\u0000", "1e400"]
)  # fmt: skip


def containers(value: Any) -> Iterator[Any]:
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


def change(draw: st.DrawFn, values: Any) -> None:
    """One change of structure, in place: drop, rename, retype, add, reorder."""
    places = [each for each in containers(values) if each]
    inside = draw(st.sampled_from(places or [values]))
    keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
    what = draw(st.sampled_from(["drop", "rename", "retype", "add", "reorder", "move"]))
    key = draw(st.sampled_from(keys)) if keys else None
    if key is not None and what == "drop":
        del inside[key]
    elif key is not None and what == "rename" and isinstance(inside, dict):
        other = draw(st.sampled_from([*KEYS, str(key)[:-1], f"{key}s"]))
        inside[other] = inside.pop(key)
    elif key is not None and what == "retype":
        inside[key] = draw(VALUES)
    elif key is not None and what == "move":
        inside[key] = copy.deepcopy(draw(st.sampled_from(places)))
    elif what == "add" and isinstance(inside, dict):
        inside[draw(st.sampled_from(KEYS))] = draw(VALUES)
    elif what == "add":
        inside.insert(draw(st.integers(0, len(inside))), draw(VALUES))
    elif what == "reorder" and isinstance(inside, dict):
        reordered = {each: inside[each] for each in draw(st.permutations(keys))}
        inside.clear()
        inside.update(reordered)
    elif what == "reorder":
        inside.reverse()


@st.composite
def restructured(draw: st.DrawFn) -> bytes:
    values = yaml.safe_load(draw(st.sampled_from(TEXTS)))
    for _ in range(draw(st.integers(1, 4))):
        change(draw, values)
    text: str = yaml.safe_dump(
        values,
        sort_keys=False,
        allow_unicode=draw(st.booleans()),
        default_flow_style=draw(st.sampled_from([None, True])),
    )
    return text.encode()


@st.composite
def rewritten(draw: st.DrawFn) -> bytes:
    """Lines dropped, doubled, moved and indented; characters flipped, put in, taken out; bytes cut off and broken."""
    lines = draw(st.sampled_from(TEXTS)).splitlines(keepends=True)
    for _ in range(draw(st.integers(0, 3))):
        at, to = (draw(st.integers(0, len(lines) - 1)) for _ in range(2))
        what = draw(st.sampled_from(["drop", "double", "move", "indent", "outdent"]))
        if what == "drop" and len(lines) > 1:
            del lines[at]
        elif what == "double":
            lines.insert(to, lines[at])
        elif what == "move":
            lines.insert(to, lines.pop(at))
        else:
            lines[at] = f"  {lines[at]}" if what == "indent" else lines[at].removeprefix("  ")
    text = "".join(lines)
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.just("") | PIECES) + text[at + draw(st.integers(0, 2)) :]
    raw = text.encode("utf-8", "surrogatepass")
    if draw(st.integers(0, 3)) == 0:
        raw = raw[: draw(st.integers(0, len(raw)))]
    if raw and draw(st.integers(0, 7)) == 0:
        at = draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + bytes([raw[at] ^ draw(st.integers(1, 255))]) + raw[at + 1 :]
    return raw


def judged(raw: bytes) -> list[Fault]:
    """The faults of a recipe, none where it loads: then it is written and read again as well."""
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "recipe.yaml", Path(folder) / "again.yaml"
        path.write_bytes(raw)
        try:
            made = load(path)
        except RecipeError as error:
            return error.faults or pytest.fail("a recipe error without faults")
        assert load(path) == made
        for written in (dump(made), dump_resolved(made, "why")):
            again.write_text(written, encoding="utf-8")
            assert load(again) == made
        resolved = resolve.resolve(made)
        assert resolve.resolve(resolved) == resolved
        try:
            assert check(path) == made
        except RecipeError as error:
            return error.faults
        return []


def stands_somewhere(fault: Fault, raw: bytes, overrides: Sequence[str] = ()) -> None:
    """A fault has no line, or one the file has, or stands in an override.

    Lines as editors count them: after a last line end there is one more, empty line. YAML's line ends are more than
    Python's universal ones.
    """
    text = raw.decode("utf-8-sig", "replace").replace("\r\n", "\n")
    lines = 1 + sum(text.count(end) for end in "\n\r\x85\u2028\u2029")
    for place in (fault.place, *([fault.also] if fault.also else [])):
        if place.file.startswith("--set "):
            assert place.file.removeprefix("--set ") in overrides
            assert (place.line, place.column) == (0, 0)
        else:
            assert Path(place.file).name == "recipe.yaml"
            assert 0 <= place.line <= lines
            assert place.column >= 0
    assert str(fault).encode()


@pytest.mark.parametrize("text", TEXTS, ids=["quickstart", "block", "flow", "anchored"])
def test_the_recipes_to_break_are_right(text: str) -> None:
    assert {fault.key for fault in judged(text.encode())} <= {"model.name"}  # which is not here


@given(restructured())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_recipe_of_another_structure_loads_or_has_faults_with_places(raw: bytes) -> None:
    for fault in judged(raw):
        assert fault.problem
        stands_somewhere(fault, raw)


@given(rewritten())
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_recipe_of_other_text_loads_or_has_faults_with_places(raw: bytes) -> None:
    for fault in judged(raw):
        assert fault.problem
        stands_somewhere(fault, raw)


OVERRIDES = st.builds(
    "{}{}{}".format,
    st.sampled_from(
        ["model", "model.name", "data.train", "data.train[0]", "data.train[1].limit", "data.train[9].path", "data.eval",
         "data.eval.split", "method", "method.targets[0]", "train.epochs", "train.max_steps", "eval.choices[1]",
         "output", "output.x[0].y", "track.to[0]", "zzz[0]", "a.b", "[0]", "..", "extends", "data.train[0][0].x",
         "eval.choices"]
    ),
    st.sampled_from(["=", "==", " = ", ""]),
    st.sampled_from(["3", "'3'", "0.5", "x", "", "[a, b]", "[]", "{}", "{path: z, limit: 2}", "{a: &a [*a]}", "[",
                     "!x y", "${env:PEFTCTL_NO_SUCH}", "\0", "\t", "a: b", "null", "no", "|", "1\n---\n2", "=a[0]"]),
)  # fmt: skip


@given(st.sampled_from(TEXTS), st.lists(OVERRIDES | st.text(max_size=20), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_overrides_load_or_have_faults_that_name_them(text: str, overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "recipe.yaml", Path(folder) / "again.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            made = load(path, overrides=overrides)
        except RecipeError as error:
            for fault in error.faults or pytest.fail("a recipe error without faults"):
                stands_somewhere(fault, text.encode(), overrides)
            return
        again.write_text(dump_resolved(made, ""), encoding="utf-8")
        assert load(again) == made
