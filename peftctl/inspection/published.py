"""What a run, or an export of one, says in its manifest of the adapter that is in it, and whether that is still so."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from peftctl.errors import PeftctlError
from peftctl.inspection import bounded
from peftctl.inspection.values import count, mapping, word

MANIFEST = "manifest.json"
HASHED_BYTES = 20_000_000_000


@dataclass(frozen=True)
class Published:
    """``run``: the directory whose artifact the folder is; "" where the folder is an export, ``exported`` from that
    run. ``differing``: files of the run that are not what was published.
    """

    manifest: Mapping[str, Any]
    run: str = ""
    exported: str = ""
    differing: Mapping[str, str] = field(default_factory=dict)

    @property
    def base(self) -> Mapping[str, Any]:
        return mapping(self.manifest.get("base"))

    @property
    def quantization(self) -> Mapping[str, Any] | None:
        """How the base was quantised while it was trained on; None where it was not."""
        return mapping(self.manifest.get("quantization")) or None


def published(folder: Path) -> Published | None:
    """What is said of an artifact's ``folder`` by the manifest in it or beside it; None where there is none."""
    folder = folder.absolute()
    own = _manifest(folder)
    if own.get("kind") == "export":
        return Published(own, exported=word(own.get("run")) or "a run")
    above = _manifest(folder.parent)
    if above.get("kind") == "run" and above.get("artifact") == folder.name:
        return Published(above, str(folder.parent), differing=differing(folder.parent, above))
    return None


def _manifest(folder: Path) -> Mapping[str, Any]:
    if not bounded.is_file(folder / MANIFEST):
        return {}
    try:
        return bounded.json_object(folder / MANIFEST)
    except PeftctlError:
        return {}


def differing(path: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Files of the run in ``path`` that are not what its manifest says, with how they differ. Sizes first: hashing
    takes time.
    """
    recorded = mapping(manifest.get("files"))
    if not recorded:
        return {MANIFEST: "names no files"}
    found = files_differing(path, recorded)
    folder = word(manifest.get("artifact")) or ""
    if folder and "/" not in folder and (path / folder).is_dir():
        for name in bounded.below(path / folder):
            if f"{folder}/{name}" not in recorded:
                found[f"{folder}/{name}"] = "is not in the manifest"
    return found


def files_differing(path: Path, recorded: Mapping[str, Any]) -> dict[str, str]:
    """Which of the files that a manifest records are not so below ``path``, with how they differ."""
    found: dict[str, str] = {}
    left = HASHED_BYTES
    for name, entry in recorded.items():
        size, digest = count(mapping(entry).get("size_bytes")), word(mapping(entry).get("sha256"))
        inside = PurePosixPath(name)
        if inside.is_absolute() or ".." in inside.parts or size is None or digest is None:
            found[name] = "the manifest's entry is no file of this run with size and hash"
            continue
        if how := _difference(path / name, size, digest, left):
            found[name] = how
        left -= size
    return found


def _difference(file: Path, size: int, digest: str, left: int) -> str:
    """How the file differs from what it should be, or "". ``left``: bytes that may still be hashed."""
    if not bounded.is_file(file):
        return "is missing"
    if (found := bounded.size_of(file)) != size:
        return f"has {found:,} bytes, where the manifest says {size:,}"
    if size > left:
        return "was not hashed: with the files before it, it is too large"
    with bounded.opened(file) as opened:
        same = hashlib.file_digest(opened, "sha256").hexdigest() == digest  # type: ignore[arg-type]
    return "" if same else "has other contents than the manifest says"


def same_base(folder: Path, recorded: Mapping[str, Any]) -> bool | None:
    """Whether the model in ``folder`` is the one that a manifest's entry describes; None where that does not say.

    Tensors' names and shapes first, then files' sizes: hashing takes a second for some gigabytes, once.
    """
    from peftctl.model import identity

    layout, files = word(recorded.get("layout_sha256")), mapping(recorded.get("files"))
    if not layout or not files:
        return None
    if identity.layout_sha256(folder) != layout:
        return False
    there = {file.name: file for file in identity.weight_files(folder)}
    if {name: bounded.size_of(file) for name, file in there.items()} != {
        name: count(mapping(entry).get("size_bytes")) for name, entry in files.items()
    }:
        return False
    return all(identity.content_sha256(file) == mapping(files[name]).get("sha256") for name, file in there.items())
