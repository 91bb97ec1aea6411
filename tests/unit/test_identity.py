"""A base model is known by its files' sizes and its tensors' names, dtypes and shapes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from peftctl import atomic
from peftctl.errors import UsageError
from peftctl.model import identity
from peftctl.model.locate import Base


def base(folder: Path, **tensors: Any) -> Base:
    folder.mkdir(exist_ok=True)
    save_file(tensors or {"a": torch.zeros(2, 3), "b": torch.ones(4)}, folder / "model.safetensors")
    return Base("owner/name", folder, "hub", "c0ffee")


def test_an_identity_names_every_weight_file(tmp_path: Path) -> None:
    made = base(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    assert identity.identity(made) == {
        "name": "owner/name",
        "origin": "hub",
        "commit": "c0ffee",
        "source": None,
        "layout_sha256": identity.layout_sha256(tmp_path / "m"),
        "files": {"model.safetensors": {"size_bytes": file.stat().st_size, "sha256": atomic.sha256(file)}},
    }


def test_the_layout_is_of_names_dtypes_and_shapes_and_not_of_values(tmp_path: Path) -> None:
    def layout(name: str, **tensors: Any) -> str:
        return identity.layout_sha256(base(tmp_path / name, **tensors).folder)

    first = layout("1", a=torch.zeros(2, 3), b=torch.zeros(4))
    assert layout("2", b=torch.ones(4), a=torch.rand(2, 3)) == first
    assert layout("3", a=torch.zeros(3, 2), b=torch.zeros(4)) != first
    assert layout("4", a=torch.zeros(2, 3), c=torch.zeros(4)) != first
    assert layout("5", a=torch.zeros(2, 3).half(), b=torch.zeros(4)) != first
    assert layout("6", a=torch.zeros(2, 3)) != first


def test_the_layout_is_the_same_however_tensors_are_spread_over_files(tmp_path: Path) -> None:
    one = base(tmp_path / "one", a=torch.zeros(2), b=torch.zeros(3)).folder
    (tmp_path / "two").mkdir()
    save_file({"b": torch.zeros(3)}, tmp_path / "two" / "model-1.safetensors", metadata={"format": "pt"})
    save_file({"a": torch.zeros(2)}, tmp_path / "two" / "model-2.safetensors")
    assert identity.layout_sha256(one) == identity.layout_sha256(tmp_path / "two")


def test_the_same_model_passes_the_check(tmp_path: Path) -> None:
    made = base(tmp_path / "m")
    identity.check(made, identity.identity(made))


@pytest.mark.parametrize("change", ["shape", "size", "more files", "no file"])
def test_another_model_is_refused(tmp_path: Path, change: str) -> None:
    made = base(tmp_path / "m")
    recorded = identity.identity(made)
    file = tmp_path / "m" / "model.safetensors"
    if change == "shape":
        save_file({"a": torch.zeros(3, 2), "b": torch.ones(4)}, file)
    elif change == "size":
        file.write_bytes(file.read_bytes() + b"\0")
    elif change == "more files":
        save_file({"c": torch.zeros(1)}, tmp_path / "m" / "more.safetensors")
        index = {"weight_map": {"a": file.name, "b": file.name, "c": "more.safetensors"}}
        (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        file.unlink()
    with pytest.raises(UsageError) as error:
        identity.check(made, recorded)
    assert str(error.value) == (
        f"{tmp_path}/m is not the base model this run was trained on: its tensors or files differ\n"
        "hint: the run was trained on owner/name at c0ffee"
    )


def test_a_second_copy_of_the_weights_under_another_name_is_no_part_of_the_model(tmp_path: Path) -> None:
    made = base(tmp_path / "m")
    recorded = identity.identity(made)
    save_file({"a": torch.zeros(9)}, tmp_path / "m" / "consolidated.safetensors")
    assert identity.identity(made) == recorded
    identity.check(made, recorded)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is no safetensors file, or is cut short"),
        (b"\x05\x00", "is no safetensors file, or is cut short"),
        (struct.pack("<Q", 100) + b"{}", "is no safetensors file, or is cut short"),
        (struct.pack("<Q", 2**63) + b"{}", "is no safetensors file, or is cut short"),
        (struct.pack("<Q", 4) + b"nope", "is no safetensors file: its header is not JSON"),
        (struct.pack("<Q", 2) + b"\xff\xff", "is no safetensors file: its header is not JSON"),
        (struct.pack("<Q", 2) + b"[]", "is no safetensors file"),
        (struct.pack("<Q", 200_000) + b"[" * 200_000, "is no safetensors file: its header is not JSON"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path: Path, content: bytes, fault: str) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    with pytest.raises(UsageError) as error:
        identity.layout_sha256(tmp_path)
    assert str(error.value).startswith(f"{file} {fault}")


def test_a_header_is_read_without_the_tensors(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    file = tmp_path / "m.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header)
    assert identity.header(file)["a"]["shape"] == [2]
