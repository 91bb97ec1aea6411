"""What a base model is, so that an adapter is never joined to another one unnoticed."""

from __future__ import annotations

import hashlib
import json
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

from peftctl.atomic import sha256, write_text
from peftctl.cache import cache_home
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
        "source": str(base.source) if base.source else None,
        "layout_sha256": layout_sha256(base.folder),
        "files": {file.name: {"size_bytes": file.stat().st_size, "sha256": content_sha256(file)} for file in files},
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
        except (ValueError, RecursionError):  # the latter for lists within lists by the thousand
            raise UsageError(f"{file} is no safetensors file: its header is not JSON") from None
    if not isinstance(parsed, dict):
        raise UsageError(f"{file} is no safetensors file: its header is no mapping")
    return parsed


def content_sha256(file: Path) -> str:
    """The SHA-256 of a weight file, remembered in the cache for as long as its size and times stay what they are.

    Hashing hundreds of gigabytes anew for every command would cost minutes.
    """
    stat = file.stat()
    what = f"{file.absolute()} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {stat.st_ino}"
    home = cache_home() / "hashes"
    known = home / hashlib.sha256(what.encode()).hexdigest()
    with suppress(OSError):
        return known.read_text("ascii")
    found = sha256(file)
    with suppress(OSError):  # a cache that cannot be written to costs time alone
        home.mkdir(exist_ok=True)
        write_text(known, found)
    return found


def check_whole(folder: Path) -> None:
    """Raises UsageError naming a weight file that is cut short, longer than its tensors, or missing."""
    for file in weight_files(folder):
        if not file.exists():
            raise UsageError(f"model.name: {file} is missing, which the model's index names")
        tensors = header(file)
        end = max((entry["data_offsets"][1] for name, entry in tensors.items() if name != "__metadata__"), default=0)
        with file.open("rb") as handle:
            start = 8 + struct.unpack("<Q", handle.read(8))[0]
        if file.stat().st_size != start + end:
            found, needed = f"{file.stat().st_size:,} bytes", f"{start + end:,}"
            raise UsageError(
                f"model.name: {file} is not whole ({found}, where its tensors need {needed})", "fetch or copy it again"
            )


def check(base: Base, recorded: dict[str, Any]) -> None:
    """Raises UsageError where ``base`` is not the model that ``recorded`` describes: other tensors, or other bytes."""
    found = {file.name: content_sha256(file) for file in weight_files(base.folder)}
    wanted = {name: entry["sha256"] for name, entry in recorded["files"].items()}
    if found != wanted or layout_sha256(base.folder) != recorded["layout_sha256"]:
        raise UsageError(
            f"{base.folder} is not the base model this run was trained on: its tensors or files differ",
            f"the run was trained on {recorded['name']}" + (f" at {recorded['commit']}" if recorded["commit"] else "")
            if recorded["name"] != base.name or recorded["commit"]
            else "it has changed since",
        )
