"""What was exported, on the hub: one commit, with a model card, and without where things lie on this machine."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl import card
from peftctl.errors import MachineError, PeftctlError, UsageError
from peftctl.model.hub_errors import TOKEN, causes, out_of_reach
from peftctl.run import Run

LARGEST_TEXT = 50_000_000
CARD, MANIFEST = "README.md", "manifest.json"
HERE = re.compile(r"path/to/this/folder(?!/)")  # as cards have it
KEPT = (".gitattributes", ".gitignore")  # the hub's own

Note = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """A repo on the hub: ``owner/name``, and whether it has to be ``private``."""

    repo: str
    private: bool

    @property
    def owner(self) -> str:
        return self.repo.split("/")[0]


def target(repo: str, private: bool) -> Target:
    """Raises UsageError where the name cannot be one, MachineError where nothing could be pushed from here."""
    from huggingface_hub import constants
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError:
        repo_fits = False
    else:
        repo_fits = repo.count("/") == 1
    if not repo_fits:
        raise UsageError(f"--push: cannot be the name of a repo (found {repo!r}); allowed: OWNER/REPO")
    if constants.is_offline_mode():
        raise MachineError("--push: HF_HUB_OFFLINE is set, so nothing can be pushed", "unset it, or leave out --push")
    if not _token():
        raise MachineError(
            f"--push: there is no token to push to {repo} with",
            "set HF_TOKEN to one that may write there, or store it with `hf auth login`",
        )
    return Target(repo, private)


def _token() -> str | None:
    """What huggingface_hub would send. Raises MachineError where it gets its tokens elsewhere, and got none."""
    import httpx2
    from huggingface_hub import get_token

    try:
        token: str | None = get_token()
        return token
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
        raise MachineError(f"--push: no token could be had ({type(error).__name__})", TOKEN) from None


def push(run: Run, out: Path, manifest: Mapping[str, Any], to: Target, note: Note) -> dict[str, Any]:
    """Commit the exported folder ``out`` to the repo and return its ``repo``, ``url``, ``commit`` and ``private``.

    ``out`` stays as it is. Raises UsageError where the repo is public and was to be private, MachineError for
    everything else that the hub or the way to it have against it.
    """
    import httpx2

    note(f"pushing {out} to {to.repo}")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # of each attempt it tells the signed address
    try:
        return _push(run, out, manifest, to, note)
    except PeftctlError:
        raise
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise _explained(error, out, to) from None


def _push(run: Run, out: Path, manifest: Mapping[str, Any], to: Target, note: Note) -> dict[str, Any]:
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    api.create_repo(to.repo, private=to.private or None, exist_ok=True)
    there = api.model_info(to.repo)
    if to.private and not there.private:
        raise UsageError(
            f"--private: has no effect on {to.repo}, which exists and is public; nothing was pushed",
            f"make it private on its page, name another, or leave out --private; {out} stands as it is",
        )
    licence = _licence(run)
    if not licence:
        note("the base's licence is not known, so the card names none")
    files = portable(run, out, manifest, licence, to.repo)
    held = {file.rfilename for file in there.siblings or []} - files.keys() - {*KEPT}
    if held:
        note(f"{to.repo} also holds {', '.join(sorted(held)[:5])}, which this export does not, and keeps it")
    made = api.create_commit(
        to.repo,
        [CommitOperationAdd(name, content) for name, content in files.items()],
        commit_message=f"{manifest['to']} of a run of peftctl",
    )
    return {"repo": to.repo, "url": made.commit_url, "commit": made.oid, "private": bool(there.private)}


def portable(
    run: Run, out: Path, manifest: Mapping[str, Any], licence: Mapping[str, str], repo: str
) -> dict[str, Path | bytes]:
    """What is uploaded, by name: the folder's files, but those that name a place on this machine without that, with a
    whole model card for README.md, and a manifest of these files."""
    files: dict[str, Path | bytes] = {}
    recorded = dict(manifest["files"])
    for name in sorted({*manifest["files"], CARD}):
        path = out / name
        text = _text(path) if path.exists() else f"# {repo.split('/')[1]}\n"
        if text is None:
            files[name] = path
            continue
        said = _without_places(text, run, out)
        if name == CARD:
            said = card.card(run, card.form_of(out), HERE.sub(repo, said), licence)
        if said == text:
            files[name] = path
        else:
            files[name] = content = said.encode()
            recorded[name] = {"size_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    told = json.loads(_without_places(json.dumps(dict(manifest), default=str), run, out))
    files[MANIFEST] = (json.dumps({**told, "files": recorded}, indent=2) + "\n").encode()
    return files


def _text(path: Path) -> str | None:
    """The file's text, None where it holds something else, or more than texts do."""
    if path.stat().st_size > LARGEST_TEXT:
        return None
    with suppress(UnicodeDecodeError):
        return path.read_bytes().decode("utf-8")
    return None


def _without_places(text: str, run: Run, out: Path) -> str:
    """``text`` with the last part of a path alone, where it is one of the run's or in the user's home."""
    base, data = run.manifest["base"], run.manifest["data"]
    named = [str(run.path), str(out.absolute()), base["name"], base["source"], *data["files"]]
    paths = {path for path in named if path and Path(path).is_absolute()}
    for path in sorted(paths, key=len, reverse=True):
        for written in _spellings(path):
            text = text.replace(written, Path(path).name)
    for home in _spellings(str(Path.home())) - {"/"}:
        text = re.sub(rf"{re.escape(home)}/(?:[^/\s\"'`]+/)*", "", text)
        text = re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text)
    return text


def _spellings(path: str) -> set[str]:
    """The path as it stands in texts, and in JSON."""
    return {path, json.dumps(path)[1:-1]}


def _licence(run: Run) -> dict[str, str]:
    """What the base's card says of its licence; nothing where there is none to be had."""
    from huggingface_hub import HfApi, constants

    base = run.manifest["base"]
    if base["origin"] != "hub":
        return card.licence_in(Path(base["name"]))
    with suppress(Exception):  # it only adds to the card
        said = HfApi().model_info(base["name"], revision=base["commit"]).card_data
        return card.licence(said.to_dict() if said else {}, f"{constants.ENDPOINT}/{base['name']}")
    return {}


def _explained(error: Exception, out: Path, to: Target) -> MachineError:
    """What went wrong, and what stands, in our words: the library's may quote headers, and with them the token."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError

    again = f"{out} stands as it is, and the same command again pushes it without exporting anew"
    answer = next((each for each in causes(error) if isinstance(each, HfHubHTTPError)), None)
    status = answer.response.status_code if answer else 0
    if status == 401:
        return MachineError(f"{to.repo}: the hub does not know the token (401)", f"{TOKEN}; {again}")
    if status in (403, 404):
        what = f"{to.repo}: the token may not write there, or there is no {to.owner} ({status})"
        return MachineError(what, f"it takes one with the right to write to {to.owner}; {TOKEN}; {again}")
    reason = next(filter(None, map(out_of_reach, causes(error))), "")
    if reason or (isinstance(error, OSError | RuntimeError) and not answer):
        return MachineError(f"{to.repo}: the upload broke off ({reason or type(error).__name__})", again)
    return MachineError(
        f"{to.repo}: {constants.ENDPOINT} did not take it ({status or type(error).__name__})",
        f"check HF_ENDPOINT, any proxy, and the token for characters that are not its own; {again}",
    )
