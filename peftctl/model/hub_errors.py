"""What is asked of the hub, and what went wrong with it, in our words. For models and data sets alike."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from peftctl.atomic import write_text
from peftctl.errors import MachineError, PeftctlError, UsageError
from peftctl.nearest import nearest

COMMIT = re.compile(r"[0-9a-f]{40}")
TOKEN = "a token is read from HF_TOKEN or stored by `hf auth login`"
FULL = ("No space left", "Not enough disk space")  # hf_xet and datasets give the system's error only as text


@dataclass(frozen=True)
class Kind:
    """What a repo holds: in our words, as the hub's type, as part of its address, and what it is called locally."""

    word: str
    repo_type: str
    prefix: str
    local: str

    @property
    def hint(self) -> str:
        return f"a local {self.local} must exist, and is best written ./name"


MODEL = Kind("model", "model", "", "folder")
DATA_SET = Kind("data set", "dataset", "datasets/", "file")


@dataclass(frozen=True)
class Asked:
    """One repo at one revision, and ``home``, its folder in huggingface_hub's cache."""

    kind: Kind
    repo: str
    revision: str
    home: Path

    def __str__(self) -> str:
        return f"{self.repo} at {self.revision!r}"

    @property
    def offline(self) -> str:
        """The hint where the hub is out of reach and the cache does not help."""
        return f"run again when the hub can be reached and HF_HUB_OFFLINE is not set, or name a local {self.kind.local}"

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


def asked(kind: Kind, repo: str, revision: str | None) -> Asked:
    """``repo`` at ``revision`` (default: main). Raises UsageError where either cannot be a name on the hub."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        what = f"{repo!r} is neither a local {kind.local} nor a hub id of the form owner/name"
        raise UsageError(what, kind.hint) from None
    if revision is not None and (not revision or revision.startswith("/") or ".." in revision):  # a path in the cache
        raise UsageError(f"{repo}: {revision!r} cannot be the name of a branch, tag or commit")
    home = Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=repo, repo_type=kind.repo_type)
    return Asked(kind, repo, revision or "main", home)


def causes(error: BaseException) -> Iterator[Exception]:
    """The error and what led to it, the newest first."""
    seen: list[BaseException] = []
    while isinstance(error, Exception) and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__ or error


def out_of_reach(error: Exception) -> str:
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


def disk_is_full(error: Exception) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    return any(getattr(e, "errno", 0) in full or any(text in str(e) for text in FULL) for e in causes(error))


def explained(error: Exception, of: Asked) -> PeftctlError:
    """What went wrong, in our words: those of the library may quote headers, and with them the token."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    word = of.kind.word
    if disk_is_full(error):
        return MachineError(f"{of}: the disk of the cache {of.home} is full", "free some space or set HF_HOME")
    if isinstance(error, OSError) and error.errno:
        return MachineError(f"{of}: {error.strerror}: {error.filename}", "see HF_HOME, which holds the cache")
    answer = next((e for e in causes(error) if isinstance(e, HfHubHTTPError)), None)
    status = answer.response.status_code if answer else 0
    page = f"{constants.ENDPOINT}/{of.kind.prefix}{of.repo}"
    if isinstance(answer, GatedRepoError):
        return MachineError(f"{of}: the {word} is gated ({status})", f"ask for access on {page}; {TOKEN}")
    if isinstance(answer, RevisionNotFoundError):
        return UsageError(f"{of.repo} has no branch, tag or commit {of.revision!r}", _revisions(of))
    if isinstance(answer, RepositoryNotFoundError) and status == 404:
        what = f"{of.repo}: no such {word} on {constants.ENDPOINT}, and no such {of.kind.local}"
        return UsageError(what, of.kind.hint)
    if status in (401, 403):
        # To a caller it does not know, the hub says 401 also for a repo that does not exist.
        what = f"{of}: no access ({status}): there is no such {word}, or it is closed to this token, or to none"
        return MachineError(what, f"check the name; access is asked for on {page}; {TOKEN}")
    reason = next(filter(None, map(out_of_reach, causes(error))), "")
    if reason or (isinstance(error, OSError | RuntimeError) and not answer):
        reason = reason or type(error).__name__
        return MachineError(f"{of}: the download broke off ({reason})", "run again to go on: whole files are kept")
    what = f"{of}: nothing usable came of asking {constants.ENDPOINT} ({status or type(error).__name__})"
    return MachineError(what, "check HF_ENDPOINT, any proxy, and the token for characters that are not its own")


def _revisions(of: Asked) -> str:
    """The revisions there are, and the nearest; "" where the hub does not say."""
    from huggingface_hub import HfApi

    with suppress(Exception):  # what is to be reported is known already: this only helps
        refs = HfApi().list_repo_refs(of.repo, repo_type=of.kind.repo_type)
        branches, tags = [ref.name for ref in refs.branches], [ref.name for ref in refs.tags]
        near = nearest(of.revision, branches + tags)
        known = f"branches: {', '.join(branches)}; tags: {', '.join(tags) or 'none'}"
        return f"did you mean {near}? {known}" if near else known
    return ""
