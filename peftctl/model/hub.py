"""A hub model's files, fetched into huggingface_hub's own cache at one commit, or found there when out of reach."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from peftctl.errors import MachineError, UsageError
from peftctl.model.hub_errors import COMMIT, MODEL, Asked, asked, explained, out_of_reach

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5")
INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
# Of the top folder only: others hold the same weights in other formats. So do Mistral's consolidated*.safetensors.
WANTED = re.compile(
    r"(?!consolidated)[^/]+\.(json|jinja|model|spm|bpe|tiktoken|safetensors)|merges\.txt|vocab[^/]*\.txt"
    r"|additional_chat_templates/[^/]+\.jinja"
)


@dataclass(frozen=True)
class Snapshot:
    """The folder that holds a model's files, all of one commit."""

    folder: Path
    commit: str


def fetch(
    repo: str, revision: str | None, *, note: Callable[[str], None], code: bool = False, weights: bool = True
) -> Snapshot:
    """The files peftctl needs of ``repo`` at ``revision`` (default: main), ``*.py`` among them only with ``code``.

    Without ``weights`` the config and the tokenizer will do: rows can be looked at without fetching a large model.

    Where the hub is out of reach, a complete copy in the cache serves, and ``note`` hears so. Raises UsageError
    for a model or revision there is not or that holds no safetensors, MachineError for network, access and disk.
    """
    import httpx2
    from huggingface_hub import HfApi, constants

    of = asked(MODEL, repo, revision)
    cached, home = _Cached(of.kind, of.repo, of.revision, of.home, code, weights), of.home
    if constants.is_offline_mode():
        return cached.instead("HF_HUB_OFFLINE is set", note)
    if COMMIT.fullmatch(cached.revision) and cached.sizes(cached.revision) and not cached.missing(cached.revision):
        return cached.snapshot(cached.revision)  # a commit never changes, so there is nothing to ask
    unreachable = ""
    try:
        info = HfApi().model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        commit, names = info.sha, [file.rfilename for file in info.siblings or []]
        if not COMMIT.fullmatch(commit):  # it becomes a path in the cache
            raise ValueError
    except (httpx2.HTTPError, OSError, ValueError, TypeError, KeyError) as error:
        if not (unreachable := out_of_reach(error)):
            raise explained(error, cached) from None
    if unreachable:
        return cached.instead(unreachable, note)

    _check_files(cached, names)
    if cached.missing(commit, names):
        note(f"fetching {repo} at commit {commit} into {home}")
        _download(cached, commit, names)
    if weights:
        cached.remember(commit)
    return cached.snapshot(commit)


def _download(cached: _Cached, commit: str, names: list[str]) -> None:
    import httpx2
    from huggingface_hub import snapshot_download

    try:  # with exact names, since in the library's patterns * matches / too
        snapshot_download(cached.repo, revision=commit, allow_patterns=list(map(glob.escape, cached.wanted(names))))
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: hf_xet's
        raise explained(error, cached) from None
    # Where the hub fails it meanwhile, the library may return what there is.
    if gone := cached.missing(commit, names):
        what = f"{cached}: {gone[0]} is missing or cut short in {cached.snapshot(commit).folder}"
        raise MachineError(what, f"run again to go on; should that change nothing, remove {cached.home} first")


@dataclass(frozen=True)
class _Cached(Asked):
    """One model at one revision, and what huggingface_hub's cache holds of it in the folder ``home``."""

    code: bool
    weights: bool = True

    def wanted(self, names: Iterable[str]) -> list[str]:
        return [name for name in _wanted(names, self.code) if self.weights or not name.endswith(".safetensors")]

    def snapshot(self, commit: str) -> Snapshot:
        return Snapshot(self.home / "snapshots" / commit, commit)

    def sizes(self, commit: str) -> dict[str, int]:
        """Every file of the commit with its size, as listed when it was fetched; empty where no list was kept."""
        from huggingface_hub import get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError

        with suppress(CachedRepoTreeNotFoundError):
            return {file.path: file.size for file in get_cached_repo_tree(self.repo, revision=commit)}
        return {}

    def missing(self, commit: str, listed: Iterable[str] = ()) -> list[str]:
        """The wanted files that are absent or cut short, by the hub's list of them or else the one kept.

        A cache that another program filled file by file has no list: then a config, a tokenizer and all the
        weights are what must be there.
        """
        folder, sizes = self.snapshot(commit).folder, self.sizes(commit)
        here = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.exists()}
        needed = self.wanted(list(listed) or sizes)
        if not needed:
            tokenizer = next((name for name in TOKENIZERS if name in here), TOKENIZERS[0])
            needed = ["config.json", tokenizer]
            needed += [INDEX if INDEX in here else "model.safetensors"] if self.weights else []
        if INDEX in here and self.weights:
            try:
                needed += sorted({*json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()})
            except (ValueError, TypeError, KeyError, AttributeError):
                return [INDEX]
        return [name for name in needed if name not in here or here[name] != sizes.get(name, here[name])]

    def instead(self, why: str, note: Callable[[str], None]) -> Snapshot:
        """The complete copy in the cache, in place of the hub that is out of reach, said aloud."""
        commit = self.commit()
        if commit is None or not self.snapshot(commit).folder.exists():
            raise MachineError(f"{self}: {why}, and the cache {self.home} holds no copy", self.offline)
        if gone := self.missing(commit):
            raise MachineError(f"{self}: {why}, and the copy in the cache {self.home} lacks {gone[0]}", self.offline)
        note(f"{self}: {why}; using the cached commit {commit}")
        return self.snapshot(commit)


def _wanted(names: Iterable[str], code: bool) -> list[str]:
    return [name for name in names if WANTED.fullmatch(name) or (code and name.endswith(".py"))]


def _check_files(cached: _Cached, names: list[str]) -> None:
    if "config.json" not in names:
        adapter = "; it is an adapter, so name its base model" if "adapter_config.json" in names else ""
        raise UsageError(f"{cached} holds no config.json, so it is no transformers model{adapter}")
    if any(name.endswith(".safetensors") for name in _wanted(names, code=False)):
        return
    if pickled := [name for name in names if any(fnmatch(name, pattern) for pattern in PICKLES)]:
        raise UsageError(
            f"{cached} holds its weights only as {pickled[0]}, and a pickle can run any code when it is loaded",
            "convert it to safetensors, or take a model or revision that has them",
        )
    raise UsageError(f"{cached} holds no *.safetensors, so there are no weights to load")
