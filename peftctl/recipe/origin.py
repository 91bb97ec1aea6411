"""What a name in a recipe means: a file, a URL, or something on the hub."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from peftctl.recipe.schema import Recipe

Origin = Literal["file", "url", "hub"]

URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*(::|://)")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILES = ("jsonl", "ndjson", "json", "csv", "tsv", "parquet", "arrow", "feather", "txt", "gz", "zst")


def origin(recipe: Recipe, path: str) -> Origin:
    """What ``path`` names. A file that is there is a file; what looks like a file's name is meant to be one."""
    if URL.match(path):
        return "url"
    return "hub" if is_hub_id(path) and not recipe.path(path).exists() else "file"


def is_local_model(name: str, path: Path) -> bool:
    """Whether a model called ``name`` is to be on this machine, at ``path``, and not on the hub."""
    return path.exists() or name.lower().endswith(".gguf") or name.startswith((".", "/", "~"))


def is_hub_id(path: str) -> bool:
    """Whether ``path`` has the form of a hub id, and not of a file's name."""
    return bool(HUB_ID.fullmatch(path)) and path.rpartition(".")[2].lower() not in FILES
