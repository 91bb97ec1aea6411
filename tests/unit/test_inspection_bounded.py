"""Files from strangers are read or refused, at once and in bounded memory; the safetensors library is the judge."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from peftctl.errors import PeftctlError, UsageError
from peftctl.inspection import bounded, tensors
from peftctl.inspection.patterns import first_matches
from peftctl.model import identity

SECONDS = 5.0


@pytest.fixture(autouse=True)
def _quick() -> Iterator[None]:
    """Each within 5 seconds of this process's own time, however busy the machine is, and never waiting for ever."""
    begun = time.process_time(), time.monotonic()
    yield
    assert time.process_time() - begun[0] < SECONDS
    assert time.monotonic() - begun[1] < 12 * SECONDS


def safetensors(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return path


def entry(shape: Any = (2,), offsets: Any = (0, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'{"a": "' + b"x" * 100_000_000 + b'"}', "is too long (found 100,000,009 bytes); allowed: 50,000,000"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is nested more than 64 levels deep"),
        (b'{"a": ' * 65 + b"1" + b"}" * 65, "is nested more than 64 levels deep"),
        (b'{"a": [' + b"[]," * 800_000 + b"[]]}", "holds more than 1,500,000 values"),
        (b'{"a": "\xff"}', "is not UTF-8 text (byte 7 is none of it)"),
        (b"[1]", "is no JSON object (found a list)"),
        (b"null", "is no JSON object (found null)"),
        (b"", "is not JSON (line 1: Expecting value)"),
        (b'{"a":\n 1', "is not JSON (line 2: Expecting ',' delimiter)"),
        (b'{"a": ' + b"1" * 5000 + b"}", "is not JSON"),
    ],
    ids=["100 MB", "deep", "65 deep", "many values", "not UTF-8", "list", "null", "empty", "cut short", "long number"],
)
def test_json_that_will_not_do_is_refused_at_once(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        bounded.json_object(path)
    assert str(error.value) == f"{path} {fault}"


def test_json_is_read_as_values_that_can_be_written_again(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(
        b'\xef\xbb\xbf{"a": NaN, "b": -Infinity, "c": 1e999, "d": "\\ud83d\\ude00 \\ud800", "e": [1.5, {}]}'
    )
    found = bounded.json_object(path)
    assert found == {"a": None, "b": None, "c": None, "d": "\U0001f600 ?", "e": [1.5, {}]}
    assert json.dumps(found, allow_nan=False, ensure_ascii=False).encode("utf-8")
    path.write_bytes(b'{"a": ' * 64 + b"1" + b"}" * 64)
    assert bounded.json_object(path).keys() == {"a"}


HEADERS: list[tuple[Any, bytes, int | None, str]] = [
    (b"{}", b"", 2**60, "its header is said to take 1,152,921,504,606,846,976 bytes, and the file has 10"),
    (b"{}", b"", 2**63, "its header is said to take 9,223,372,036,854,775,808 bytes"),
    (b"{}", b"", 3, "its header is said to take 3 bytes"),
    (b"{}", b"", 0, "its header is said to take 0 bytes"),
    (b"nope", b"", None, "its header is not JSON"),
    (b"[" * 50_000, b"", None, "its header is nested more than 64 levels deep"),
    (b"[]", b"", None, "its header is no JSON object"),
    (b"\xff\xff", b"", None, "is not UTF-8 text"),
    ({"a": [1]}, b"", None, "tensor 'a': it is not described by a JSON object"),
    ({"a": entry(dtype="F33")}, b"\0" * 8, None, "tensor 'a': no such dtype (found 'F33'); allowed: BOOL, F4"),
    ({"a": entry(dtype=["F32"])}, b"\0" * 8, None, "tensor 'a': no such dtype"),
    ({"a": entry(shape=[-2])}, b"\0" * 8, None, "its shape is no list of sizes (found [-2])"),
    ({"a": entry(shape=[True])}, b"\0" * 8, None, "its shape is no list of sizes (found [True])"),
    ({"a": entry(shape="2")}, b"\0" * 8, None, "its shape is no list of sizes (found 2)"),
    ({"a": entry(shape=[2**63])}, b"\0" * 8, None, "its shape is no list of sizes"),
    ({"a": entry(shape=[2**62, 2**62])}, b"\0" * 8, None, "does not take the 8 bytes that it is given"),
    ({"a": entry(shape=[3])}, b"\0" * 8, None, "F32 of shape [3] does not take the 8 bytes that it is given"),
    ({"a": entry(offsets=[8, 0])}, b"\0" * 8, None, "its data_offsets are no beginning and end (found [8, 0])"),
    ({"a": entry(offsets=[0])}, b"\0" * 8, None, "its data_offsets are no beginning and end"),
    ({"a": entry(offsets=None)}, b"\0" * 8, None, "its data_offsets are no beginning and end (found None)"),
    ({"a": entry(offsets=[4, 12])}, b"\0" * 12, None, "tensor 'a' leaves a gap behind the one before"),
    ({"a": entry(), "b": entry(offsets=[4, 12])}, b"\0" * 12, None, "tensor 'b' overlaps the one before"),
    ({"a": entry(), "b": entry()}, b"\0" * 8, None, "tensor 'b' overlaps the one before"),
    ({"a": entry()}, b"\0" * 7, None, "is cut short ("),
    ({"a": entry(offsets=[0, 2**50], shape=[2**48])}, b"\0" * 8, None, "is cut short ("),
    ({"a": entry()}, b"\0" * 9, None, "is longer than its tensors ("),
    ({"a" * 501: entry()}, b"\0" * 8, None, "a name of 501 characters; allowed: 500"),
]


@pytest.mark.parametrize(("header", "data", "length", "fault"), HEADERS, ids=[case[3][-40:] for case in HEADERS])
def test_a_header_that_is_not_so_is_refused(
    tmp_path: Path, header: Any, data: bytes, length: int | None, fault: str
) -> None:
    path = safetensors(tmp_path / "m.safetensors", header, data, length)
    with pytest.raises(UsageError) as error:
        bounded.header(path)
    assert str(error.value).startswith(str(path))
    assert fault in str(error.value)
    if "501" not in fault:  # names that long are no fault to the library
        with pytest.raises(SafetensorError), safe_open(path, "pt"):
            pass


def test_a_file_of_nothing_and_a_header_above_the_limit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="it has no header, and the file has 0"):
        bounded.header(path)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", bounded.LARGEST_HEADER + 1))
        file.truncate(bounded.LARGEST_HEADER + 100)  # takes no room on the disk
    with pytest.raises(UsageError, match="its header takes 100,000,001 bytes; allowed: 100,000,000"):
        bounded.header(path)
    assert bounded.LARGEST_HEADER == identity.LARGEST_HEADER


def test_a_header_is_what_the_library_wrote(tmp_path: Path) -> None:
    made = {"b": torch.zeros(2, 3), "a": torch.ones(4, dtype=torch.bfloat16), "empty": torch.zeros(0, 5)}
    made["scalar"] = torch.tensor(1.0, dtype=torch.float64)
    save_file(made, tmp_path / "m.safetensors", metadata={"format": "pt"})
    found = bounded.header(tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as opened:
        assert found.keys() == set(opened.keys())
        for name, tensor in found.items():
            part = opened.get_slice(name)
            assert (tensor.dtype, list(tensor.shape)) == (part.get_dtype(), part.get_shape())
            assert tensor.parameters == made[name].numel()


MADE = [
    torch.linspace(-3, 3, 24, dtype=torch.float64),
    *(torch.linspace(-3, 3, 24).to(dtype) for dtype in (torch.float32, torch.float16, torch.bfloat16)),
    *(torch.arange(256, dtype=torch.uint8).view(dtype) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)),
    *(torch.arange(-12, 12).to(dtype) for dtype in (torch.int64, torch.int32, torch.int16, torch.int8)),
    torch.arange(24, dtype=torch.uint8),
    torch.arange(24) % 2 == 0,
    torch.tensor([float("nan"), float("inf"), -float("inf"), 1e-45, 0.0]),
    torch.tensor([float("nan"), float("inf"), -float("inf")], dtype=torch.bfloat16),
]


@pytest.mark.parametrize("made", MADE, ids=lambda made: f"{made.dtype}-{len(made)}")
def test_values_are_those_of_torch(tmp_path: Path, made: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "PIECE", 7)
    save_file({"before": torch.zeros(3), "x": made}, tmp_path / "m.safetensors")
    tensor = bounded.header(tmp_path / "m.safetensors")["x"]
    assert tensors.readable(tensor)
    pieces = [piece.copy() for piece in tensors.Reader().flat(tensor)]
    assert max(map(len, pieces)) <= 7
    np.testing.assert_array_equal(np.concatenate(pieces), made.double().numpy())


@pytest.mark.parametrize("piece", [6, 10, 13, 1000])
def test_a_matrix_is_read_in_rows_or_in_columns(tmp_path: Path, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensors, "PIECE", piece)
    made = torch.randn(6, 9)
    save_file({"x": made}, tmp_path / "m.safetensors")
    tensor, reader = bounded.header(tmp_path / "m.safetensors")["x"], tensors.Reader()
    columns = np.concatenate([piece.copy() for piece in reader.columns(tensor, 6)], axis=1)
    np.testing.assert_array_equal(columns, made.double().numpy())
    if piece >= 9:
        rows = np.concatenate([piece.copy() for piece in reader.rows(tensor, 9)])
        np.testing.assert_array_equal(rows, made.double().numpy())


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(100)}, tmp_path / "m.safetensors")
    tensor = bounded.header(tmp_path / "m.safetensors")["x"]
    os.truncate(tmp_path / "m.safetensors", 200)
    with pytest.raises(UsageError, match="has become shorter while it was read"):
        list(tensors.Reader().flat(tensor))


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listener(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(path))


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path.with_name("other"))
    path.with_name("other").symlink_to(path)


def nowhere(path: Path) -> None:
    path.symlink_to(path.with_name("nothing"))


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (fifo, "is no plain file (a pipe, socket or device), and is not opened"),
        (listener, "is no plain file (a pipe, socket or device), and is not opened"),
        (device, "is no plain file (a pipe, socket or device), and is not opened"),
        (loop, "is a link that leads back to itself"),
        (nowhere, ": no such file or folder"),
        (lambda path: path.mkdir(), "is a folder, where a file was expected"),
        (lambda path: None, ": no such file or folder"),
    ],
    ids=["pipe", "socket", "device", "loop", "dangling", "folder", "nothing"],
)
@pytest.mark.parametrize("read", [bounded.json_object, bounded.header, bounded.text, bounded.size_of])
def test_only_plain_files_are_opened(
    tmp_path: Path, make: Callable[[Path], None], fault: str, read: Callable[[Path], Any]
) -> None:
    path = tmp_path / "adapter_config.json"
    make(path)
    with pytest.raises(UsageError) as error:
        read(path)
    assert str(error.value).removeprefix(str(path)).strip() == fault.strip()
    assert not bounded.is_file(path)


@pytest.mark.timeout(30)
def test_a_file_that_becomes_a_pipe_meanwhile_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo(tmp_path / "pipe")
    checks = iter([lambda *_: None, bounded._plain])  # at first it looks like a file
    monkeypatch.setattr(bounded, "_plain", lambda *given: next(checks)(*given))
    with pytest.raises(UsageError, match="is no plain file"):
        bounded.json_object(tmp_path / "pipe")


def test_a_path_with_a_zero_byte_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no path"):
        bounded.json_object(tmp_path / "a\0b")
    assert not bounded.is_file(tmp_path / "a\0b")


def test_a_folder_that_links_to_itself_comes_to_an_end(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_text("x")
    (tmp_path / "sub" / "again").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    fifo(tmp_path / "pipe")
    assert bounded.below(tmp_path) == ["sub/file"]
    assert bounded.names(tmp_path) == ["pipe", "self", "sub"]
    with pytest.raises(UsageError, match="is a link that leads back to itself"):
        bounded.names(tmp_path / "self")


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "MOST_ENTRIES", 3)
    for name in "abcd":
        (tmp_path / name).write_text("")
    for read in (bounded.names, bounded.below, bounded.pickles):
        with pytest.raises(UsageError, match="holds more than 3 files"):
            read(tmp_path)


@pytest.mark.parametrize(
    "named", ["../m.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\0"], ids=lambda named: repr(named)
)
def test_an_index_names_files_beside_it_only(tmp_path: Path, named: str) -> None:
    (tmp_path / bounded.INDEX).write_text(json.dumps({"weight_map": {"a": named}}))
    with pytest.raises(UsageError, match="names a file that is not beside it"):
        bounded.weight_files(tmp_path)
    (tmp_path / bounded.INDEX).write_text(json.dumps({"weight_map": [1]}))
    with pytest.raises(UsageError, match="has no weight_map"):
        bounded.weight_files(tmp_path)


def test_weight_files_are_those_that_a_model_is_loaded_from(tmp_path: Path) -> None:
    for name in ("b.safetensors", "a.safetensors"):
        (tmp_path / name).write_text("")
    assert bounded.weight_files(tmp_path) == [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    (tmp_path / "model.safetensors").write_text("")
    assert bounded.weight_files(tmp_path) == [tmp_path / "model.safetensors"] == identity.weight_files(tmp_path)
    (tmp_path / bounded.INDEX).write_text(json.dumps({"weight_map": {"x": "b.safetensors", "y": "b.safetensors"}}))
    assert bounded.weight_files(tmp_path) == [tmp_path / "b.safetensors"] == identity.weight_files(tmp_path)


HOSTILE = """
import resource, sys
from pathlib import Path
from peftctl.errors import PeftctlError
from peftctl.inspection import bounded
resource.setrlimit(resource.RLIMIT_AS, (700_000_000, 700_000_000))
for name in sys.argv[1:]:
    for read in (bounded.json_object, bounded.header):
        try:
            read(Path(name))
        except PeftctlError as error:
            print(error.message[:200])
"""


@pytest.mark.slow
def test_memory_is_bounded_whatever_a_file_holds(tmp_path: Path) -> None:
    most = bounded.LARGEST_HEADER
    long = tmp_path / "long.json"
    long.write_bytes(b'{"a": "' + b"x" * most + b'"}')
    many = safetensors(tmp_path / "many.safetensors", b'{"a":[' + b"[]," * (most // 3 - 10) + b"[]]}")
    text = safetensors(tmp_path / "text.safetensors", b'{"__metadata__":{"a":"' + b"x" * (most - 100) + b'"}}')
    deep = safetensors(tmp_path / "deep.safetensors", b"[" * 1_000_000)
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, *map(str, (long, many, text, deep))], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 7  # the one long text in a header is as it may be


@pytest.mark.slow
@pytest.mark.every
def test_a_pattern_that_backtracks_for_ever_is_given_up() -> None:
    names = ["model.layers.0.self_attn.q_proj"]
    assert first_matches([r"([\w.]+)+!"], names) is None
    assert first_matches([r"q_proj("], names) is None


@pytest.mark.parametrize(
    ("patterns", "whole", "places"),
    [
        (["v_proj", "q_proj"], False, [1, None, None]),
        (["layers.0.q_proj", "q_proj"], False, [0, None, None]),
        (["q_proj", "layers.0.q_proj"], False, [0, None, None]),
        ([r"layers\.[0-3]\.q_proj"], False, [0, None, None]),
        ([r".*k_(proj|x)"], False, [None, 0, None]),
        ([r".*q_proj"], True, [0, None, 0]),
        (["q_proj"], True, [None, None, None]),
        ([], False, [None, None, None]),
    ],
)
def test_patterns_match_as_in_peft(patterns: list[str], whole: bool, places: list[int | None]) -> None:
    names = ["model.layers.0.q_proj", "model.layers.7.k_proj", "xq_proj"]
    assert first_matches(patterns, names, whole=whole) == places
    for name, at in zip(names, places, strict=True):
        if whole:
            assert bool(re.fullmatch(patterns[0], name)) == (at is not None)
        else:
            assert get_pattern_key(patterns, name) == (name if at is None else patterns[at])


def test_a_refusal_of_the_system_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")

    def refused(*_: Any, **__: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(PeftctlError, match="cannot be read: Permission denied"):
        bounded.json_object(path)
