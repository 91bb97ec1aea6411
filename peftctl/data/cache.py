"""Encoded rows kept from run to run, under a hash of all that they depend on.

An entry is a folder of arrays and a list of its files with their hashes, published by rename. What it depends on is
its name: the contents of the files, the settings of data, task and template, the tokenizer, and the code that read
and encoded them. The first half of the name covers what reading alone depends on, so that an entry also tells that
the rows of these files were read before and found good.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from peftctl.atomic import inventory, lock, publish_directory, write_json
from peftctl.cache import cache_home
from peftctl.data.encode import Encoding, Rows
from peftctl.data.store import ARRAYS, from_arrays
from peftctl.errors import MachineError, UsageError
from peftctl.recipe.schema import Recipe

MOST_BYTES = 10 * 2**30
CODE = ("data", "example.py", "formats", "recipe/filters.py", "tasks", "text")
COUNTS = ("read", "dropped", "parts", "filtered", "held_out", "truncated", "split")
READ_LATER = {"learn", "template", "max_length", "overlong"}  # what reading does not depend on


@dataclass(frozen=True)
class Entry:
    """An entry's name in two parts: of what is read, and of how it is encoded."""

    reading: str
    encoding: str = ""

    @property
    def name(self) -> str:
        return f"{self.reading}-{self.encoding}"


def reading(recipe: Recipe) -> Entry | None:
    """The name of what the recipe reads. None where a source is not pinned, so that nothing tells when it changes."""
    data = recipe.data.model_dump(mode="json", exclude=READ_LATER)
    sources = [*data["train"], *([data["eval"]] if data["eval"] and data["eval"]["path"] else [])]
    for source in sources:
        if source["sha256"] is None and source["revision"] is None:
            return None
        if source["sha256"] is not None:
            # The same rows under another name; but the name's ending says how they are read.
            source["path"] = "".join(Path(source["path"]).suffixes)
    split = recipe.train.seed if recipe.data.eval and recipe.data.eval.path is None else None
    weighted = recipe.train.seed if any(source.weight % 1 for source in recipe.data.train) else None
    return Entry(_digest(data, recipe.task.model_dump(mode="json"), split, weighted, _code()))


def entry(found: Entry, encoding: Encoding) -> Entry:
    """The full name, for rows encoded so."""
    tokenizer = encoding.tokenizer
    settings = (encoding.max_length, encoding.learn, encoding.overlong)
    special = [tokenizer.chat_template, tokenizer.bos_token_id, tokenizer.eos_token_id, type(tokenizer).__name__]
    return Entry(found.reading, _digest(settings, special, tokenizer.backend_tokenizer.to_str()))


def seen(found: Entry | None) -> bool:
    """Whether rows so read are in the cache, in whatever encoding: then they need not be read to be found good."""
    if found is None:
        return False
    with suppress(OSError, MachineError):
        return any(_home().glob(f"{found.reading}-*"))
    return False


@contextmanager
def only_one(found: Entry) -> Iterator[None]:
    """Within this context no other process makes the same entry; one that was about to waits and finds it made.

    Where the cache cannot be written to, everyone makes their own.
    """
    try:
        path = _home() / f".{found.name}.lock"
        held = lock(path, f"{path} is locked", wait=True)
        held.__enter__()
    except (OSError, MachineError):
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            held.__exit__(None, None, None)


def load(found: Entry) -> dict[str, Rows] | None:
    """The rows by side, train and eval, as they were saved; None where there are none, or none that are whole."""
    with suppress(OSError, MachineError):
        folder = _home() / found.name
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            facts = json.loads((folder / "entry.json").read_text("utf-8"))
            arrays = {name: file for name, file in inventory(folder).items() if name != "entry.json"}
            if arrays == facts["files"]:
                rows = {side: _rows(folder, side, counts) for side, counts in facts["sides"].items()}
                with suppress(OSError):  # a cache that only others may write to
                    os.utime(folder)  # the last to be used is the last to be thrown out
                return rows
        shutil.rmtree(folder, ignore_errors=True)  # what is not whole, or the next one could not take its place
    return None


def save(found: Entry, sides: Mapping[str, Rows], note: Callable[[str], None] = lambda _: None) -> None:
    """Keep the rows. A cache that takes nothing more is no reason to end a run, but ``note`` hears of it."""
    try:
        with publish_directory(_home() / found.name) as folder:
            for side, rows in sides.items():
                for name, array in _arrays(rows).items():
                    np.save(folder / f"{side}.{name}.npy", array, allow_pickle=False)
            counts = {side: {name: getattr(rows, name) for name in COUNTS} for side, rows in sides.items()}
            write_json(folder / "entry.json", {"files": inventory(folder), "sides": counts})
        _throw_out(keep=found.name)
    except UsageError:  # another run has made them meanwhile
        pass
    except (OSError, MachineError) as error:
        reason = error.message if isinstance(error, MachineError) else error.strerror
        note(f"the encoded rows are not kept for the next run: {reason}")


def sizes() -> dict[str, tuple[int, int]]:
    """For each kind of thing in the user's cache, how many there are and their bytes."""
    found = {}
    for kind in sorted(path for path in cache_home().iterdir() if path.is_dir()):
        entries = [path for path in kind.iterdir() if not path.name.startswith(".") and path.suffix != ".lock"]
        found[kind.name] = (len(entries), sum(map(_size, entries)))
    return found


def clear() -> int:
    """Remove encoded rows and copies of remote files. Returns the bytes that are free now.

    Converted models stay: runs name them as their base.
    """
    freed = 0
    for kind in ("data", "files"):
        folder = cache_home() / kind
        freed += _size(folder)
        shutil.rmtree(folder, ignore_errors=True)
    return freed


def _home() -> Path:
    home = cache_home() / "data"
    home.mkdir(exist_ok=True)
    return home


def _arrays(rows: Rows) -> dict[str, Any]:
    arrays = {**rows.encoded.arrays(), "of": rows.of}
    return arrays | ({"epoch": rows.epoch} if rows.epoch is not None else {})


def _rows(folder: Path, side: str, counts: Mapping[str, Any]) -> Rows:
    # Mapped, not read: rows that are not taken cost no memory, and two runs share those that are.
    arrays = {
        name: np.load(folder / f"{side}.{name}.npy", mmap_mode="r", allow_pickle=False)
        for name in (*ARRAYS, "of", "epoch")
        if (folder / f"{side}.{name}.npy").exists()
    }
    return Rows(from_arrays(arrays), arrays["of"], epoch=arrays.get("epoch"), **{name: counts[name] for name in COUNTS})


def _throw_out(keep: str) -> None:
    """Entries used longest ago, until the rest is small enough; ``keep`` stays, however large it is."""
    entries = [path for path in _home().iterdir() if path.is_dir() and path.name != keep]
    entries.sort(key=lambda path: -path.stat().st_mtime)
    room = MOST_BYTES - _size(_home() / keep)
    for path in entries:
        room -= _size(path)
        if room < 0:
            shutil.rmtree(path, ignore_errors=True)


def _size(path: Path) -> int:
    total = 0
    for file in [path, *path.rglob("*")]:
        with suppress(OSError):
            total += file.stat().st_size if file.is_file() else 0
    return total


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


@cache
def _code() -> str:
    """A hash of the code that reads and encodes rows, and of the libraries that do it with it."""
    from importlib.metadata import version

    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in CODE:
        for file in sorted((package / name).rglob("*.py")) if (package / name).is_dir() else [package / name]:
            digest.update(file.relative_to(package).as_posix().encode() + b"\0" + file.read_bytes())
    libraries = ("datasets", "jinja2", "pyarrow", "tokenizers", "transformers")
    return digest.hexdigest() + " ".join(map(version, libraries))
