"""Fetching a model from a hub: which files at which commit, and what is said when it cannot be done."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from peftctl.errors import MachineError, PeftctlError, UsageError
from peftctl.model import hub as model_hub
from tests import fake_hub
from tests.fake_hub import REPO, SECRET, FakeHub

A, B = "a" * 40, "b" * 40
GATED = (403, "GatedRepo", "Access to model acme/tiny is restricted")
FIRST, LAST = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A fake hub with one sharded model, and huggingface_hub pointed at it with an empty cache."""
    with fake_hub.pointed(FakeHub({A: fake_hub.sharded()}, {"main": A}, {"v1.0": A}), monkeypatch, tmp_path) as served:
        yield served


def fetch(revision: str | None = None, *, repo: str = REPO, code: bool = False) -> tuple[model_hub.Snapshot, list[str]]:
    notes: list[str] = []
    return model_hub.fetch(repo, revision, note=notes.append, code=code), notes


def refused(kind: type[PeftctlError], *parts: str, revision: str | None = None, repo: str = REPO) -> PeftctlError:
    """The error, of exactly that kind, whose message and hint hold ``parts`` and nothing secret."""
    with pytest.raises(kind) as caught:
        fetch(revision, repo=repo)
    text = str(caught.value)
    assert not [part for part in parts if part not in text], text
    assert SECRET not in text
    assert "\n" not in caught.value.message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("revision", [None, "main", "v1.0", A])
def test_a_revision_becomes_a_commit_and_is_downloaded_once(hub: FakeHub, revision: str | None) -> None:
    snapshot, notes = fetch(revision)
    assert snapshot.commit == A
    assert names(snapshot.folder) == set(hub.commits[A])
    assert (snapshot.folder / FIRST).read_bytes() == hub.commits[A][FIRST]
    assert A in notes[0]

    hub.served.clear()
    hub.requests.clear()
    assert fetch(revision) == (snapshot, [])
    assert hub.served == []
    assert len(hub.requests) == (0 if revision == A else 1)  # a branch or tag may have moved, a commit cannot


def test_only_the_files_that_are_needed_are_downloaded(hub: FakeHub) -> None:
    others = ["README.md", "pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors", "modeling.py"]
    templates = {"additional_chat_templates/tools.jinja": b"{{ tools }}"}
    wanted = fake_hub.sharded() | templates
    hub.commits[A] = wanted | dict.fromkeys(others, b"x") | {"more/code.py": b"y"}

    assert names(fetch()[0].folder) == set(wanted)
    assert names(fetch(code=True)[0].folder) == {*wanted, "modeling.py", "more/code.py"}


def test_a_branch_that_moves_while_it_is_fetched_mixes_no_files(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    hub.commits[B] = {name: data + b" " for name, data in hub.commits[A].items()}
    download = huggingface_hub.snapshot_download

    def moved_first(*args: Any, **kwargs: Any) -> str:
        hub.branches["main"] = B
        return str(download(*args, **kwargs))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", moved_first)
    snapshot, _ = fetch("main")
    assert snapshot.commit == A
    assert {name: (snapshot.folder / name).read_bytes() for name in hub.commits[A]} == hub.commits[A]
    assert fetch("main")[0].commit == B


def test_a_model_that_does_not_exist(hub: FakeHub) -> None:
    refused(UsageError, "acme/tyni", "no such model", hub.endpoint, "./name", repo="acme/tyni")


def test_a_missing_revision_is_told_what_there_is(hub: FakeHub) -> None:
    hub.tags["v2.0"] = A
    refused(UsageError, REPO, "'v1.1'", "did you mean v1.0?", "branches: main", "v2.0", revision="v1.1")
    refused(UsageError, "'" + B + "'", "branches: main", revision=B)


@pytest.mark.parametrize("repo", ["a/b/c", "a b", "a--b", ""])
def test_a_name_that_is_no_hub_id(hub: FakeHub, repo: str) -> None:
    refused(UsageError, repr(repo), "owner/name", "./name", repo=repo)
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["", "../../main", "/etc/passwd"])
def test_a_revision_that_is_no_git_name(hub: FakeHub, revision: str) -> None:
    refused(UsageError, repr(revision), "branch", revision=revision)
    assert hub.requests == []


@pytest.mark.parametrize("files_only", [True, False])  # the hub itself tells anyone what a gated model consists of
def test_a_gated_model(hub: FakeHub, files_only: bool) -> None:
    hub.refuse, hub.refuse_files = (None, GATED) if files_only else (GATED, None)
    refused(MachineError, REPO, "gated (403)", f"access on {hub.endpoint}/{REPO}", "HF_TOKEN", "`hf auth login`")
    assert hub.served == []


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "", "Invalid credentials in Authorization header"),
        (401, "RepoNotFound", "Invalid username or password."),
        (403, "", f"the token {SECRET} may not read this"),
    ],
)
def test_no_access(hub: FakeHub, status: int, code: str, message: str) -> None:
    hub.refuse = (status, code, message)
    refused(MachineError, REPO, f"({status})", "check the name", "HF_TOKEN", "`hf auth login`")


@pytest.mark.parametrize("letter", ["\x0b", "é"])  # one that no header may hold, one that ASCII has not
def test_a_token_that_cannot_be_sent_is_not_shown(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, letter: str) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{SECRET}{letter}x")
    refused(MachineError, REPO, "the token")
    assert hub.requests == []


def test_offline_with_a_complete_copy_uses_it_and_says_so(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, _ = fetch("main")
    offline(monkeypatch)
    for revision in (None, "main", A):
        again, notes = fetch(revision)
        assert again == snapshot
        assert len(notes) == 1
        assert f"HF_HUB_OFFLINE is set; using the cached commit {A}" in notes[0]
    refused(MachineError, REPO, "'v1.0'", "HF_HUB_OFFLINE is set", "holds no copy", revision="v1.0")


@pytest.mark.parametrize("how", ["refused", "no such host", "answers 503", "answers 429"])
def test_a_hub_out_of_reach(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    snapshot, _ = fetch("main")
    if how.startswith("answers"):
        hub.refuse = (int(how.split()[1]), "", "")
    else:
        nowhere = "http://127.0.0.1:9" if how == "refused" else "http://hub.invalid"
        monkeypatch.setattr(constants, "ENDPOINT", nowhere)
        if how == "no such host":
            monkeypatch.setattr(socket, "getaddrinfo", unresolved)
        close_session()
    again, notes = fetch("main")
    assert again == snapshot
    assert len(notes) == 1
    assert f"using the cached commit {A}" in notes[0]
    reason = f"the hub answered {hub.refuse[0]}" if hub.refuse else "cannot be reached"
    assert reason in notes[0]
    refused(MachineError, "acme/other", reason, "holds no copy", "local folder", repo="acme/other")


@pytest.mark.parametrize("listed", [True, False])  # with the hub's list of files in the cache, or only an index
@pytest.mark.parametrize("lost", ["config.json", "tokenizer.json", fake_hub.INDEX, LAST])
def test_part_of_a_copy_is_not_taken_for_the_whole(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, lost: str, listed: bool
) -> None:
    snapshot, _ = fetch("main")
    if not listed:
        forget_list(snapshot.folder)
    (snapshot.folder / lost).unlink()
    offline(monkeypatch)
    shown = "model.safetensors" if lost == fake_hub.INDEX else lost
    refused(MachineError, REPO, "HF_HUB_OFFLINE is set", "lacks", shown)


def test_a_copy_with_no_list_of_files_will_do_if_nothing_needed_is_missing(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot, _ = fetch("main")
    forget_list(snapshot.folder)
    offline(monkeypatch)
    assert fetch("main")[0] == snapshot


def test_a_file_cut_short_is_not_taken_for_whole(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot, _ = fetch("main")
    (snapshot.folder / LAST).write_bytes(b"half")
    refused(MachineError, LAST, "cut short", "remove")
    offline(monkeypatch)
    refused(MachineError, LAST, "lacks")


def test_a_download_that_breaks_off_goes_on_when_run_again(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.break_off = LAST
    refused(MachineError, REPO, "broke off", "run again", "kept")

    with monkeypatch.context() as patch:
        offline(patch)
        refused(MachineError, REPO, "holds no copy")
        refused(MachineError, LAST, "lacks", revision=A)

    hub.break_off = ""
    hub.served.clear()
    snapshot, _ = fetch()
    assert names(snapshot.folder) == set(hub.commits[A])
    assert hub.served == [LAST]


@pytest.mark.parametrize(("status", "said"), [(503, "broke off (the hub answered 503)"), (404, "(404)")])
def test_a_hub_that_lists_files_and_does_not_give_them(hub: FakeHub, status: int, said: str) -> None:
    hub.refuse_files = (status, "", "")
    refused(MachineError, REPO, said)


def test_a_new_commit_that_never_came_whole_leaves_the_old_one_to_use(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = fetch("main")
    hub.commits[B] = {name: data + b" " for name, data in hub.commits[A].items()}
    hub.branches["main"], hub.break_off = B, LAST
    refused(MachineError, "broke off")
    offline(monkeypatch)
    again, notes = fetch("main")
    assert again == old
    assert A in notes[0]


@pytest.mark.parametrize("pickle", ["pytorch_model.bin", "model.pt", "model.ckpt", "tf_model.h5"])
def test_pickles_alone_are_refused_before_anything_is_downloaded(hub: FakeHub, pickle: str) -> None:
    hub.commits[A] = {"config.json": fake_hub.CONFIG, "tokenizer.json": b"{}", pickle: b"x" * 1000}
    refused(UsageError, REPO, pickle, "a pickle can run any code when it is loaded", "convert it to safetensors")
    assert hub.served == []


def test_what_is_no_model_is_refused_before_anything_is_downloaded(hub: FakeHub) -> None:
    hub.commits[A] = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x"}
    refused(UsageError, "no config.json", "adapter")
    hub.commits[A] = {"config.json": fake_hub.CONFIG, "model.gguf": b"x"}
    refused(UsageError, "no *.safetensors")
    assert hub.served == []


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, fault: int, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    refused(MachineError, REPO, "full", str(tmp_path / "hub"), "HF_HOME")


def test_a_cache_that_cannot_be_written_to(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "hub").write_text("a file where the folder should be")
    refused(MachineError, REPO, str(tmp_path / "hub"), "HF_HOME")


def test_a_server_that_is_no_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_hub._Handler, "_api", lambda self, rest: self._send(200, b"<html>Welcome!</html>", {}))
    refused(MachineError, hub.endpoint, "HF_ENDPOINT")
    monkeypatch.setattr(fake_hub._Handler, "_api", lambda self, rest: self._json({"id": REPO, "sha": "../../x"}))
    refused(MachineError, hub.endpoint, "HF_ENDPOINT")


@pytest.mark.slow
def test_the_environment_alone_points_to_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    """As users have it: the library reads its environment as it is imported, which no other test here shows."""
    program = "import sys; from peftctl.model import hub; print(hub.fetch(sys.argv[1], None, note=print).commit)"
    environment = {
        "PATH": os.environ["PATH"],
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    for extra, said in ({}, f"fetching {REPO}"), ({"HF_HUB_OFFLINE": "1"}, f"using the cached commit {A}"):
        done = subprocess.run(
            [sys.executable, "-c", program, REPO], env=environment | extra, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
        assert done.stdout.splitlines()[-1] == A


def test_the_library_is_not_imported_before_it_is_needed() -> None:
    program = "import sys, peftctl.model.hub; sys.exit('huggingface_hub' in sys.modules or 'httpx2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def unresolved(*_: object, **__: object) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def forget_list(folder: Path) -> None:
    """As another program leaves the cache that fetches file by file: no list of what the commit holds."""
    from huggingface_hub import _tree_cache

    for path in (folder.parent.parent / "trees").iterdir():
        path.unlink()
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
