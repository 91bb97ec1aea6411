"""What a base model is, so that an adapter is never joined to another one unnoticed."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from peftctl.atomic import sha256
from peftctl.errors import UsageError
from peftctl.model.locate import Base

LARGEST_HEADER = 100_000_000


def identity(base: Base) -> dict[str, Any]:
    """Name and origin, every weight file's size and SHA-256, and a hash over all tensor names, shapes and dtypes."""
    files = weight_files(base.folder)
    return {
        "name": base.name,
        "origin": base.origin,
        "commit": base.commit,
        "layout_sha256": layout_sha256(base.folder),
        "files": {file.name: {"size_bytes": file.stat().st_size, "sha256": sha256(file)} for file in files},
    }


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that the model is loaded from: those its index names, or the single one.

    Some models carry a second copy of their weights under another name, which is no part of what they are.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        return sorted({folder / name for name in json.loads(index.read_text("utf-8"))["weight_map"].values()})
    single = folder / "model.safetensors"
    return [single] if single.exists() else sorted(folder.glob("*.safetensors"))


def weight_bytes(folder: Path) -> int:
    """The size of the folder's weights on disk."""
    return sum(file.stat().st_size for file in weight_files(folder))


def layout_sha256(folder: Path) -> str:
    """A hash over the name, dtype and shape of every tensor in the folder's safetensors files."""
    layout: dict[str, Any] = {}
    for file in weight_files(folder):
        for name, tensor in header(file).items():
            if name != "__metadata__":
                layout[name] = [tensor["dtype"], tensor["shape"]]
    return hashlib.sha256(json.dumps(layout, sort_keys=True).encode()).hexdigest()


def header(file: Path) -> dict[str, Any]:
    """The header of a safetensors file. Raises UsageError where it is not one."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        length = struct.unpack("<Q", handle.read(8).ljust(8, b"\xff"))[0]
        if length > min(LARGEST_HEADER, size - 8):
            raise UsageError(f"{file} is no safetensors file, or is cut short")
        try:
            parsed: dict[str, Any] = json.loads(handle.read(length))
        except ValueError:
            raise UsageError(f"{file} is no safetensors file: its header is not JSON") from None
    if not isinstance(parsed, dict):
        raise UsageError(f"{file} is no safetensors file: its header is no mapping")
    return parsed


def check(base: Base, recorded: dict[str, Any]) -> None:
    """Raises UsageError where ``base`` is not the model that ``recorded`` describes, by layout and file sizes."""
    sizes = {file.name: file.stat().st_size for file in weight_files(base.folder)}
    wanted = {name: entry["size_bytes"] for name, entry in recorded["files"].items()}
    if sizes != wanted or layout_sha256(base.folder) != recorded["layout_sha256"]:
        raise UsageError(
            f"{base.folder} is not the base model this run was trained on: its tensors or files differ",
            f"the run was trained on {recorded['name']}" + (f" at {recorded['commit']}" if recorded["commit"] else ""),
        )
