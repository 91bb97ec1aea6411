"""Whatever is in a stranger's files, inspecting them gives a value or an error with a clear message, and soon."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from peftctl.console import adapters
from peftctl.errors import PeftctlError
from peftctl.inspection import bounded
from peftctl.inspection.adapter import adapter_facts
from peftctl.inspection.bounded import Tensor
from peftctl.inspection.checkpoints import checkpoint_facts
from peftctl.inspection.runs import run_facts
from peftctl.inspection.tensors import Reader
from peftctl.inspection.update import effective_rank, measure

SECONDS = 5.0
WEIGHTS = "adapter_model.safetensors"
WORDS = ["q_proj", "lora_A", "LORA", "IA3", "(a+)+", "layers.0", "..", "/", "[bold]", "\x1b[2J", "\ud800", "yes", "run"]
scalars = (
    st.none() | st.booleans() | st.integers() | st.integers(0, 40) | st.floats() | st.text(max_size=5)
) | st.sampled_from(WORDS)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strange")


def settled(read: Callable[[Path], Any], path: Path) -> Any:
    """What reading gives; None where it is refused. Fails where it raises anything else, or takes long."""
    begun = time.process_time()
    try:
        found, said = read(path), "read"
    except PeftctlError as error:
        found, said = None, error.message
    assert said
    assert time.process_time() - begun < SECONDS
    return found


def looked_at(read: Callable[[Path], Any], path: Path) -> None:
    facts = settled(read, path)
    if facts is not None:
        json.dumps(facts.as_dict(), allow_nan=False, ensure_ascii=False).encode("utf-8")
        adapters.show(facts)


def store(header: dict[str, Any], data: bytes) -> bytes:
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def named(part: str) -> str:
    return f"base_model.model.model.layers.0.self_attn.q_proj.{part}.weight"


SOUND = {
    named("lora_A"): {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    named("lora_B"): {"dtype": "F16", "shape": [4, 2], "data_offsets": [24, 40]},
}
CONFIG = {
    "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
    "base_model_name_or_path": "owner/base", "rank_pattern": {}, "alpha_pattern": {}, "modules_to_save": None,
    "use_dora": False, "use_rslora": False, "bias": "none", "target_parameters": None, "layers_to_transform": None,
    "num_virtual_tokens": None, "trainable_token_indices": None, "revision": None, "init_r": None,
}  # fmt: skip
PEFT_TYPES = ["LORA", "ADALORA", "IA3", "LOHA", "LOKR", "PROMPT_TUNING", "PREFIX_TUNING", "VERA", "XLORA", ""]


@settings(deadline=None)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_a_value_or_refused(folder: Path, content: bytes) -> None:
    path = folder / "any"
    path.write_bytes(content)
    found = settled(bounded.json_object, path)
    if found is not None:
        json.dumps(found, allow_nan=False, ensure_ascii=False).encode("utf-8")
    settled(bounded.header, path)


@settings(deadline=None)
@given(value=values)
def test_any_json_is_read_as_it_is_but_for_what_cannot_be_written(folder: Path, value: Any) -> None:
    path = folder / "any.json"
    path.write_text(json.dumps({"value": value}))
    found = settled(bounded.json_object, path)
    written = json.dumps(found, allow_nan=False, ensure_ascii=False).encode("utf-8")
    assert json.loads(written) == found
    if json.dumps(value, ensure_ascii=True) == json.dumps(found["value"]):
        assert found["value"] == value


entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "U8", "I64", "F33"]) | scalars,
        "shape": st.lists(st.integers(-1, 5), max_size=3) | values,
        "data_offsets": st.tuples(st.integers(-1, 60), st.integers(-1, 60)).map(list) | values,
    }
)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=6), entries, max_size=3), st.binary(max_size=60), st.data())
def test_no_header_is_taken_that_the_library_refuses(
    folder: Path, header: dict[str, Any], data: bytes, draw: st.DataObject
) -> None:
    content = bytearray(store({**SOUND, **header} if draw.draw(st.booleans()) else header, data))
    for at in draw.draw(st.lists(st.integers(0, len(content) - 1), max_size=2)):
        content[at] = draw.draw(st.integers(0, 255))
    path = folder / "any.safetensors"
    path.write_bytes(content)
    found = settled(bounded.header, path)
    if found is not None:
        with safe_open(path, "np") as opened:
            assert set(opened.keys()) == found.keys()
            for name, tensor in found.items():
                assert opened.get_slice(name).get_shape() == list(tensor.shape)


@settings(deadline=None)
@given(st.lists(st.sampled_from(["F32", "F16", "BF16", "U8"]), min_size=1, max_size=4), st.data())
def test_every_sound_header_is_taken(folder: Path, dtypes: list[str], draw: st.DataObject) -> None:
    header, at = {}, 0
    for number, dtype in enumerate(dtypes):
        shape = draw.draw(st.lists(st.integers(0, 4), max_size=3))
        end = at + int(np.prod(shape, dtype=int)) * bounded.BITS[dtype] // 8
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [at, end]}
        at = end
    path = folder / "sound.safetensors"
    path.write_bytes(store(header, bytes(at)))
    found = settled(bounded.header, path)
    assert {name: (each.dtype, list(each.shape)) for name, each in found.items()} == {
        name: (each["dtype"], each["shape"]) for name, each in header.items()
    }


shaped = st.lists(st.integers(0, 4), max_size=3)
parts = st.sampled_from(
    [named(part) for part in ("lora_A", "lora_B", "lora_E", "lora_embedding_A", "ia3_l", "hada_w1_a", "lokr_w1", "x")]
    + ["prompt_embeddings", "base_model.model.lm_head.weight", "base_model.vera_A", ".", "base_model.model.", ""]
)


@settings(max_examples=150, deadline=None)
@given(
    fields=st.dictionaries(st.sampled_from(list(CONFIG)) | st.text(max_size=6), values, max_size=4),
    peft_type=st.sampled_from(PEFT_TYPES),
    tensors=st.dictionaries(parts | st.text(max_size=8), shaped, max_size=5),
    content=st.binary(min_size=16, max_size=16),
)
def test_any_adapter_is_looked_at_or_refused(
    folder: Path, fields: dict[str, Any], peft_type: str, tensors: dict[str, list[int]], content: bytes
) -> None:
    header, at = {}, 0
    for name, shape in tensors.items():
        end = at + int(np.prod(shape, dtype=int)) * 4
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    data = (content * (at // 16 + 1))[:at]
    path = folder / "adapter"
    path.mkdir(exist_ok=True)
    (path / WEIGHTS).write_bytes(store(header, data))
    # A pattern that never ends takes its two seconds each time, and has a test of its own.
    fields = {name: value for name, value in fields.items() if "pattern" not in name}
    (path / "adapter_config.json").write_text(json.dumps({**CONFIG, "peft_type": peft_type, **fields}))
    looked_at(adapter_facts, path)


@settings(deadline=None)
@given(
    fields=st.dictionaries(st.sampled_from(["rank_pattern", "alpha_pattern", "r", "lora_alpha"]), values, max_size=2)
)
def test_any_pattern_is_matched_or_given_up(folder: Path, fields: dict[str, Any]) -> None:
    path = folder / "pattern"
    path.mkdir(exist_ok=True)
    (path / WEIGHTS).write_bytes(store(SOUND, bytes(range(40))))
    (path / "adapter_config.json").write_text(json.dumps({**CONFIG, **fields}))
    looked_at(adapter_facts, path)


MANIFEST = {
    "kind": "run", "artifact": "adapter", "task": "causal_lm", "method": {"name": "lora"}, "base": {"name": "x"},
    "data": {"train": {"read": 1}}, "steps": 3, "skipped_updates": 0, "losses": {"first": 1.0}, "metrics": {"loss": 1},
    "verified": {"reload": {"verified": "yes"}}, "files": {"adapter/a": {"size_bytes": 1, "sha256": "x"}},
}  # fmt: skip
EVENT = {"event": "step", "step": 1, "steps": 3, "loss": 1.0, "learning_rate": 1e-3, "epoch": 0.5}


@settings(deadline=None)
@given(
    fields=st.dictionaries(st.sampled_from(list(MANIFEST)), values, max_size=3),
    events=st.lists(st.dictionaries(st.sampled_from(["event", "source", *EVENT]), values, max_size=3), max_size=3),
    torn=st.binary(max_size=20),
    finished=st.booleans(),
)
def test_any_run_is_looked_at_or_refused(
    folder: Path, fields: dict[str, Any], events: list[dict[str, Any]], torn: bytes, finished: bool
) -> None:
    path = folder / "run"
    (path / "adapter").mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").unlink(missing_ok=True)
    if finished:
        (path / "manifest.json").write_text(json.dumps({**MANIFEST, **fields}))
    lines = "".join(json.dumps({**EVENT, **event}) + "\n" for event in events)
    (path / "metrics.jsonl").write_bytes(lines.encode() + torn)
    (path / "resolved.yaml").write_bytes(torn)
    looked_at(run_facts, path)


STATE = {"global_step": 1, "max_steps": 2, "epoch": 0.5, "best_metric": 1.0, "log_history": [{"loss": 1.0}]}


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from([*STATE, "best_model_checkpoint", "x"]), values, max_size=3))
def test_any_checkpoint_is_looked_at_or_refused(folder: Path, fields: dict[str, Any]) -> None:
    path = folder / "checkpoint-1"
    path.mkdir(exist_ok=True)
    (path / "trainer_state.json").write_text(json.dumps({**STATE, **fields}))
    looked_at(checkpoint_facts, path)


@settings(deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=12), st.floats(1e-3, 1e3), st.integers(0, 5))
def test_an_effective_rank_lies_between_one_and_the_rank(sizes: list[float], scale: float, zeros: int) -> None:
    found = effective_rank(np.array(sizes))
    assert 1 - 1e-9 <= found <= len(sizes) + 1e-9
    assert effective_rank(np.array([*sizes, *[0.0] * zeros]) * scale) == pytest.approx(found)
    assert effective_rank(np.full(len(sizes), scale)) == pytest.approx(len(sizes))
    assert effective_rank(np.zeros(len(sizes))) == 0


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(-3, 3))
def test_figures_are_those_of_the_whole_product(
    folder: Path, rank: int, inputs: int, outputs: int, seed: int, scale: float
) -> None:
    random = np.random.default_rng(seed)
    down, up = random.standard_normal((rank, inputs)), random.standard_normal((outputs, rank))
    path = folder / "pair"
    path.write_bytes(down.tobytes() + up.tobytes())
    pair = {
        "lora_A": Tensor(path, "a", "F64", down.shape, 0, down.nbytes),
        "lora_B": Tensor(path, "b", "F64", up.shape, down.nbytes, up.nbytes),
    }
    values = np.linalg.svd(scale * up @ down, compute_uv=False)
    found = measure(Reader(), "m", pair, {}, scale)
    assert found.norm == pytest.approx(float(np.linalg.norm(values)), rel=1e-9)
    # Singular values come from squares: of those below 1e-8 of the largest nothing is known.
    assert found.effective_rank == pytest.approx(effective_rank(values), rel=1e-5)
