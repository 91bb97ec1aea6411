"""A hub model's files, fetched into huggingface_hub's own cache at one commit, or found there when out of reach."""

from __future__ import annotations

import errno
import glob
import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from peftctl.atomic import write_text
from peftctl.errors import MachineError, PeftctlError, UsageError
from peftctl.nearest import nearest

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5")
COMMIT = re.compile(r"[0-9a-f]{40}")
INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
# Of the top folder only: others hold the same weights in other formats. So do Mistral's consolidated*.safetensors.
WANTED = re.compile(
    r"(?!consolidated)[^/]+\.(json|jinja|model|spm|bpe|tiktoken|safetensors)|merges\.txt|vocab[^/]*\.txt"
    r"|additional_chat_templates/[^/]+\.jinja"
)
LOCAL = "a local folder must exist, and is best written ./name"
OFFLINE = "run again when the hub can be reached and HF_HUB_OFFLINE is not set, or name a local folder"
TOKEN = "a token is read from HF_TOKEN or stored by `hf auth login`"


@dataclass(frozen=True)
class Snapshot:
    """The folder that holds a model's files, all of one commit."""

    folder: Path
    commit: str


def fetch(repo: str, revision: str | None, *, note: Callable[[str], None], code: bool = False) -> Snapshot:
    """The files peftctl needs of ``repo`` at ``revision`` (default: main), ``*.py`` among them only with ``code``.

    Where the hub is out of reach, a complete copy in the cache serves, and ``note`` hears so. Raises UsageError
    for a model or revision there is not or that holds no safetensors, MachineError for network, access and disk.
    """
    import httpx2
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.file_download import repo_folder_name

    _check_form(repo, revision)
    home = Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=repo, repo_type="model")
    cached = _Cached(repo, revision or "main", code, home)
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
        if not (unreachable := _out_of_reach(error)):
            raise _explained(error, cached) from None
    if unreachable:
        return cached.instead(unreachable, note)

    _check_files(cached, names)
    if cached.missing(commit, names):
        note(f"fetching {repo} at commit {commit} into {home}")
        try:  # with exact names, since in the library's patterns * matches / too
            snapshot_download(repo, revision=commit, allow_patterns=[glob.escape(n) for n in _wanted(names, code)])
        except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:  # RuntimeError: hf_xet's
            raise _explained(error, cached) from None
        # Where the hub fails it meanwhile, the library may return what there is.
        if gone := cached.missing(commit, names):
            what = f"{cached}: {gone[0]} is missing or cut short in {cached.snapshot(commit).folder}"
            raise MachineError(what, f"run again to go on; should that change nothing, remove {home} first")
    cached.remember(commit)
    return cached.snapshot(commit)


@dataclass(frozen=True)
class _Cached:
    """One model at one revision, and what huggingface_hub's cache holds of it in the folder ``home``."""

    repo: str
    revision: str
    code: bool
    home: Path

    def __str__(self) -> str:
        return f"{self.repo} at {self.revision!r}"

    def snapshot(self, commit: str) -> Snapshot:
        return Snapshot(self.home / "snapshots" / commit, commit)

    def commit(self) -> str | None:
        """The commit that the revision was when it was last fetched."""
        if COMMIT.fullmatch(self.revision):
            return self.revision
        with suppress(OSError, ValueError):
            found = (self.home / "refs" / self.revision).read_text().strip()
            return found if COMMIT.fullmatch(found) else None
        return None

    def remember(self, commit: str) -> None:
        """Only for what has come whole, so that a branch kept in the cache leads to files that are all there."""
        if self.commit() != commit:
            with suppress(OSError):  # a cache that cannot be written to has what was asked for all the same
                (self.home / "refs" / self.revision).parent.mkdir(parents=True, exist_ok=True)
                write_text(self.home / "refs" / self.revision, commit)

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
        needed = _wanted(list(listed) or sizes, self.code)
        if not needed:
            tokenizer = next((name for name in TOKENIZERS if name in here), TOKENIZERS[0])
            needed = ["config.json", tokenizer, INDEX if INDEX in here else "model.safetensors"]
        if INDEX in here:
            try:
                needed += sorted({*json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()})
            except (ValueError, TypeError, KeyError, AttributeError):
                return [INDEX]
        return [name for name in needed if name not in here or here[name] != sizes.get(name, here[name])]

    def instead(self, why: str, note: Callable[[str], None]) -> Snapshot:
        """The complete copy in the cache, in place of the hub that is out of reach, said aloud."""
        commit = self.commit()
        if commit is None or not self.snapshot(commit).folder.exists():
            raise MachineError(f"{self}: {why}, and the cache {self.home} holds no copy", OFFLINE)
        if gone := self.missing(commit):
            raise MachineError(f"{self}: {why}, and the copy in the cache {self.home} lacks {gone[0]}", OFFLINE)
        note(f"{self}: {why}; using the cached commit {commit}")
        return self.snapshot(commit)


def _wanted(names: Iterable[str], code: bool) -> list[str]:
    return [name for name in names if WANTED.fullmatch(name) or (code and name.endswith(".py"))]


def _check_form(repo: str, revision: str | None) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise UsageError(f"{repo!r} is neither a local folder nor a hub id of the form owner/name", LOCAL) from None
    if revision is not None and (not revision or revision.startswith("/") or ".." in revision):  # a path in the cache
        raise UsageError(f"{repo}: {revision!r} cannot be the name of a branch, tag or commit")


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


def _out_of_reach(error: Exception) -> str:
    """Why the hub could not be asked, or "" where it could."""
    import httpx2
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return f"the hub answered {status}" if status == 429 or status >= 500 else ""
    # LocalProtocolError is a request that could not be built: its text quotes the token.
    if isinstance(error, httpx2.TransportError) and not isinstance(error, httpx2.LocalProtocolError):
        return f"{constants.ENDPOINT} cannot be reached ({error or type(error).__name__})"
    return ""


def _explained(error: Exception, cached: _Cached) -> PeftctlError:
    """What went wrong, in our words: those of the library may quote headers, and with them the token."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    causes = [error]
    while isinstance(cause := causes[-1].__cause__ or causes[-1].__context__, Exception) and cause not in causes:
        causes.append(cause)
    # hf_xet gives the system's error only as text.
    if any(getattr(e, "errno", 0) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(e) for e in causes):
        return MachineError(f"{cached}: the disk of the cache {cached.home} is full", "free some space or set HF_HOME")
    if isinstance(error, OSError) and error.errno:
        return MachineError(f"{cached}: {error.strerror}: {error.filename}", "see HF_HOME, which holds the cache")
    answer = next((e for e in causes if isinstance(e, HfHubHTTPError)), None)
    status = answer.response.status_code if answer else 0
    page = f"{constants.ENDPOINT}/{cached.repo}"
    if isinstance(answer, GatedRepoError):
        return MachineError(f"{cached}: the model is gated ({status})", f"ask for access on {page}; {TOKEN}")
    if isinstance(answer, RevisionNotFoundError):
        return UsageError(f"{cached.repo} has no branch, tag or commit {cached.revision!r}", _revisions(cached))
    if isinstance(answer, RepositoryNotFoundError) and status == 404:
        return UsageError(f"{cached.repo}: no such model on {constants.ENDPOINT}, and no such folder", LOCAL)
    if status in (401, 403):
        # To a caller it does not know, the hub says 401 also for a model that does not exist.
        what = f"{cached}: no access ({status}): there is no such model, or it is closed to this token, or to none"
        return MachineError(what, f"check the name; access is asked for on {page}; {TOKEN}")
    reason = next(filter(None, map(_out_of_reach, causes)), "")
    if reason or (isinstance(error, OSError | RuntimeError) and not answer):
        reason = reason or type(error).__name__
        return MachineError(f"{cached}: the download broke off ({reason})", "run again to go on: whole files are kept")
    what = f"{cached}: nothing usable came of asking {constants.ENDPOINT} ({status or type(error).__name__})"
    return MachineError(what, "check HF_ENDPOINT, any proxy, and the token for characters that are not its own")


def _revisions(cached: _Cached) -> str:
    """The revisions there are, and the nearest; "" where the hub does not say."""
    from huggingface_hub import HfApi

    with suppress(Exception):  # what is to be reported is known already: this only helps
        refs = HfApi().list_repo_refs(cached.repo)
        branches, tags = [ref.name for ref in refs.branches], [ref.name for ref in refs.tags]
        near = nearest(cached.revision, branches + tags)
        known = f"branches: {', '.join(branches)}; tags: {', '.join(tags) or 'none'}"
        return f"did you mean {near}? {known}" if near else known
    return ""
