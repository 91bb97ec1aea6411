"""What a path or a name stands for, and files from strangers: each a clear refusal, at once."""

from __future__ import annotations

import json
import os
import pickle
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from peftctl.errors import MachineError, UsageError
from peftctl.inspection import gguf_head, weights
from peftctl.inspection.model import read_settings
from peftctl.inspection.what import decide

CONFIG: dict[str, Any] = {"model_type": "llama", "num_hidden_layers": 2}


def folder(path: Path, *names: str, **texts: str) -> Path:
    path.mkdir(parents=True)
    for name in names:
        (path / name).write_bytes(b"")
    for name, text in texts.items():
        (path / name.replace("__", ".")).write_text(text, "utf-8")
    return path


def safetensors(path: Path, header: bytes, length: int | None = None, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def refused(name: str | Path) -> str:
    started = time.monotonic()
    with pytest.raises((UsageError, MachineError)) as error:
        decide(str(name))
    assert time.monotonic() - started < 2
    return str(error.value)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["config.json", "model.safetensors", "tokenizer.json"], "model"),
        (["config.json"], "model"),
        (["config.json", "pytorch_model.bin"], "model"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter"),
        (["adapter_config.json", "adapter_model.safetensors", "config.json"], "adapter"),
        (["adapter_config.json", "config.json", "model.safetensors"], "model"),
        (["adapter_config.json", "adapter_model.safetensors", "trainer_state.json"], "checkpoint"),
        (["config.json", "model.safetensors", "optimizer.pt", "trainer_state.json"], "checkpoint"),
        (["recipe.yaml", "resolved.yaml", "metrics.jsonl"], "run"),
        (["recipe.yaml", "resolved.yaml", "manifest.json", "config.json"], "run"),
        (["recipe.yaml", ".lock"], "run"),
        (["manifest.json", "adapter"], "run"),
        (["adapter_config.json", "adapter_model.safetensors", "training_args.bin"], "adapter"),
        (["optimizer.bin", "random_states_0.pkl", "model.safetensors"], "checkpoint"),
        (["checkpoint-10", "checkpoint-20"], "checkpoint"),
        (["adapter_config.json", "manifest.json"], "adapter"),
    ],
)
def test_a_folder_is_told_by_what_it_holds(tmp_path: Path, names: list[str], kind: str) -> None:
    path = folder(tmp_path / "it", *names)
    found = decide(str(path))
    assert (found.kind, found.path) == (kind, path)


def test_a_file_is_told_by_its_first_bytes_and_its_name(tmp_path: Path) -> None:
    path = folder(tmp_path / "it", "adapter_config.json", config__json=json.dumps(CONFIG))
    (path / "x").write_bytes(b"GGUF and more")
    safetensors(path / "model.safetensors", b"{}")
    assert decide(str(path / "config.json")).kind == "config"
    assert decide(str(path / "config.json")).path == path / "config.json"
    assert decide(str(path / "x")).kind == "gguf"
    assert decide(str(path / "adapter_config.json")).path == path
    assert decide(str(path / "model.safetensors")).kind == "model"
    (path / "also.json").write_text(json.dumps(CONFIG), "utf-8")
    assert decide(str(path / "also.json")).kind == "config"


def test_a_folder_with_one_gguf_file_is_that_file_and_one_with_two_asks_which(tmp_path: Path) -> None:
    path = folder(tmp_path / "it", "README.md")
    (path / "a.gguf").write_bytes(b"GGUF")
    assert decide(str(path)).path == path / "a.gguf"
    (path / "b.gguf").write_bytes(b"GGUF")
    assert refused(path) == f"{path} holds 2 .gguf files\nhint: name one of them: {path / 'a.gguf'}"


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Llama-3.1-70B", "a/b.c-d_e"])
def test_what_is_not_here_and_may_be_a_hub_id_is_one(name: str) -> None:
    assert decide(name).kind == "hub"


@pytest.mark.parametrize(
    "name", ["./gpt2", "/no/such", "~/no-such", "a/b/c", "x.gguf", "config.json", "", "a b", "a\0b"]
)
def test_what_can_be_no_hub_id_is_missing(name: str) -> None:
    assert "no such file or folder" in refused(name)


def test_a_missing_path_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "runs" / "first")
    monkeypatch.chdir(tmp_path)
    assert refused("runs/fist") == "runs/fist: no such file or folder\nhint: did you mean runs/first?"
    assert refused(tmp_path / "rums").endswith(f"did you mean {tmp_path / 'runs'}?")


def test_links_pipes_and_devices_are_refused_and_never_opened(tmp_path: Path) -> None:
    loop, other, pipe = tmp_path / "loop", tmp_path / "other", tmp_path / "config.json"
    loop.symlink_to(other)
    other.symlink_to(loop)
    os.mkfifo(pipe)
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    assert "leads back to itself" in refused(loop)
    assert "no such file or folder" in refused(tmp_path / "gone")
    assert "no plain file" in refused(pipe)
    assert "no plain file" in refused("/dev/zero")


def test_a_link_to_a_folder_above_is_no_trap(tmp_path: Path) -> None:
    path = folder(tmp_path / "it", config__json=json.dumps(CONFIG))
    (path / "again").symlink_to(path)
    assert decide(str(path / "again" / "again")).kind == "model"


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "weights"])
def test_a_pickle_is_refused_unopened(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps(print, protocol=4))
    assert "reading a pickle can run any code" in refused(path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("recipe.yaml", "model: x", "is a recipe\nhint: peftctl check"),
        ("notes.txt", "hello", "is nothing that can be inspected"),
        ("model.gguf", "nonsense", "does not begin with GGUF"),
        ("a.json", "[1]", "is no JSON object"),
        ("a.json", "{}", "names no model_type"),
        ("a.json", "{", "is not JSON"),
        ("a.json", '{"a":' * 10_000, "nested more than"),
    ],
)
def test_a_file_that_is_something_else_is_said_to_be(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    assert said in refused(tmp_path / name)


def test_an_empty_folder_and_one_of_other_things_say_what_is_allowed(tmp_path: Path) -> None:
    assert "it is empty" in refused(folder(tmp_path / "empty"))
    said = refused(folder(tmp_path / "photos", "a.jpg", "recipe.yaml"))
    assert "found a.jpg, recipe.yaml" in said
    assert "a model folder" in said


def settings_refused(path: Path) -> str:
    started = time.monotonic()
    with pytest.raises(UsageError) as error:
        read_settings(path)
    assert time.monotonic() - started < 5
    return error.value.message


def test_a_config_of_a_hundred_megabytes_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, "x": "a" * 100_000_000}), "utf-8")
    assert "is too long (found 100,000," in settings_refused(path)


@pytest.mark.parametrize(
    "asked",
    [
        {"num_hidden_layers": 10**9},
        {"text_config": {"num_hidden_layers": 10**9}},
        {"n_layer": 10**9},
        {"num_labels": 10**10},
        {"num_experts": 10**9},
        {"depth": 10**9},
    ],
)
def test_a_config_that_asks_for_more_than_any_model_has_is_refused(tmp_path: Path, asked: dict[str, Any]) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**CONFIG, **asked}), "utf-8")
    assert "more than any model has" in settings_refused(path)


def test_large_numbers_of_other_things_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    asked = {**CONFIG, "vocab_size_per_layer_input": 262144, "block_size": 16384, "label2id": {"layers": 3}}
    path.write_text(json.dumps(asked), "utf-8")
    assert read_settings(path) == asked


@pytest.mark.parametrize("kind", [None, 7, "", ["llama"]])
def test_a_config_without_a_model_type_is_refused(tmp_path: Path, kind: Any) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": kind}), "utf-8")
    assert "names no model_type" in settings_refused(path)


def test_weights_on_disk_are_counted_by_dtype_from_headers_alone(tmp_path: Path) -> None:
    header = {
        "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
        "b": {"dtype": "F32", "shape": [5], "data_offsets": [12, 32]},
    }
    raw = json.dumps(header).encode()
    safetensors(tmp_path / "one.safetensors", raw, data=bytes(32))
    safetensors(tmp_path / "two.safetensors", raw.replace(b'"a"', b'"c"').replace(b'"b"', b'"d"'), data=bytes(32))
    found = weights.on_disk(tmp_path)
    assert found is not None
    assert found.by_dtype == {"bfloat16": 12, "float32": 10}
    assert list(found.by_dtype) == ["bfloat16", "float32"]
    assert (found.files, found.size_bytes) == (2, 2 * (8 + len(raw) + 32))
    assert weights.on_disk(folder(tmp_path / "empty")) is None


@pytest.mark.parametrize(("header", "length"), [(b"{}", 2**60), (b"{}", 2**64 - 1), (b"[]", None), (b"{" * 99, None)])
def test_a_header_that_lies_is_refused_at_once(tmp_path: Path, header: bytes, length: int | None) -> None:
    safetensors(tmp_path / "model.safetensors", header, length)
    with pytest.raises(UsageError, match="is no safetensors file"):
        weights.on_disk(tmp_path)


def test_an_index_that_leads_elsewhere_or_to_nothing_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}), "utf-8")
    with pytest.raises(UsageError, match="not beside it"):
        weights.on_disk(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}), "utf-8")
    with pytest.raises(UsageError, match=r"gone\.safetensors is missing"):
        weights.on_disk(tmp_path)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({}, ""),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq, bits 4"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}},
         "bitsandbytes, load_in_4bit True"),
        ({"quantization_config": {}}, "yes"),
        ({"quantization_config": "odd"}, ""),
    ],
)  # fmt: skip
def test_how_weights_are_quantised_is_said_in_the_config_s_words(found: dict[str, Any], said: str) -> None:
    assert weights.quantization(found) == said


def gguf(path: Path, keys: list[bytes], tensors: list[bytes], tail: bytes = b"", counts: Any = None) -> Path:
    said = counts or (len(tensors), len(keys))
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, *said) + b"".join(keys) + b"".join(tensors) + tail)
    return path


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    """As the format has it: the innermost dimension first."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset)


ARCHITECTURE = text("general.architecture") + struct.pack("<I", 8) + text("llama")


def test_a_gguf_head_is_read_without_its_vocabulary(tmp_path: Path) -> None:
    words = text("tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, 8, 5000) + text("word") * 5000
    path = gguf(
        tmp_path / "m.gguf",
        [ARCHITECTURE, words],
        [tensor("token_embd.weight", (7, 4)), *(tensor(f"blk.{n}.x.weight", (4,), 1, 128 + 32 * n) for n in (0, 1))],
        bytes(512),
    )  # fmt: skip
    found = gguf_head.head(path)
    assert found.architecture == "llama"
    assert found.vocabulary == 7
    assert found.disk.by_dtype == {"F32": 28, "F16": 8}
    assert [(each.name, each.shape, each.dtype, each.layers) for each in found.tensors] == [
        ("token_embd.weight", (7, 4), "F32", 1),
        ("blk.*.x.weight", (4,), "F16", 2),
    ]
    assert b"general.architecture" in found.settings
    assert b"tokenizer.ggml.tokens" not in found.settings


def test_the_copy_of_a_gguf_s_settings_is_one_that_the_gguf_package_reads(tmp_path: Path) -> None:
    from gguf import GGUFReader

    path = gguf(tmp_path / "m.gguf", [ARCHITECTURE], [tensor("token_embd.weight", (7, 4))], bytes(256))
    (tmp_path / "copy.gguf").write_bytes(gguf_head.head(path).settings)
    read = GGUFReader(tmp_path / "copy.gguf")
    assert read.fields["general.architecture"].contents() == "llama"
    assert [each.name for each in read.tensors] == ["token_embd.weight"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: gguf(p, [], [], counts=(2**60, 0)), "1,152,921,504,606,846,976 tensors"),
        (lambda p: gguf(p, [], [], counts=(0, 2**60)), "1,152,921,504,606,846,976 settings"),
        (lambda p: gguf(p, [struct.pack("<Q", 2**60)], []), "a text of 1,152,921,504,606,846,976 bytes"),
        (lambda p: gguf(p, [text("k") + struct.pack("<IIQ", 9, 8, 2**60)], []), "a list of 1,152,921,504,606,846,976"),
        (lambda p: gguf(p, [text("k") + struct.pack("<IIQ", 9, 4, 3_000_000)], []), "cut short"),
        (lambda p: gguf(p, [text("k") + struct.pack("<IIQ", 9, 9, 1)], []), "no known type"),
        (lambda p: gguf(p, [text("k") + struct.pack("<I", 99)], []), "no known type"),
        (lambda p: gguf(p, [ARCHITECTURE], [tensor("a", (1000, 1000))]), "is not whole"),
        (lambda p: gguf(p, [ARCHITECTURE], [text("a") + struct.pack("<I", 2**31)]), "2,147,483,648 dimensions"),
        (lambda p: gguf(p, [ARCHITECTURE], []), "holds no tensors"),
        (lambda p: p.write_bytes(b"GGUF\x03\0\0"), "cut short"),
        (lambda p: p.write_bytes(b"GGUF" + struct.pack("<IQQ", 9, 0, 0)), "version 9"),
    ],
)
def test_a_gguf_that_lies_or_is_cut_short_is_refused_at_once(tmp_path: Path, make: Any, said: str) -> None:
    path = tmp_path / "m.gguf"
    make(path)
    started = time.monotonic()
    with pytest.raises(UsageError, match=r"no GGUF file|not whole|no model") as error:
        gguf_head.head(path)
    assert said in str(error.value)
    assert time.monotonic() - started < 2
