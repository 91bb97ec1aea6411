"""Rows of a data set on a hub: which of them at which commit, and what is said when they cannot be had."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfFileSystem, constants

from peftctl.data import hub as data_hub
from peftctl.errors import DataError, MachineError, PeftctlError, UsageError
from tests import fake_hub
from tests.fake_hub import REPO, SECRET, FakeHub

A, B = "a" * 40, "b" * 40
GATED = (403, "GatedRepo", "Access to dataset acme/tiny is restricted")
TRAIN = [{"prompt": f"p{n}", "completion": f"c{n}", "meta": {"n": n, "tags": ["x", "y"][: n % 3]}} for n in range(7)]
TEST = [{"prompt": "tp", "completion": "tc", "meta": {"n": -1, "tags": []}}]
CHAT, CODE = [{"text": f"chat {n}"} for n in range(3)], [{"text": f"code {n}", "stars": n} for n in range(5)]
CONFIGS = """---
configs:
- config_name: chat
  data_files:
  - split: train
    path: chat/*.parquet
- config_name: code
  data_files:
  - split: easy
    path: code/easy.parquet
  - split: hard
    path: code/hard.parquet
---
"""


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    pq.write_table(pa.Table.from_pylist(rows), file := io.BytesIO())
    return file.getvalue()


def by_split() -> dict[str, bytes]:
    return {"train.jsonl": jsonl(TRAIN), "test.jsonl": jsonl(TEST), "LICENSE": b"none"}


def by_config(readme: str = CONFIGS) -> dict[str, bytes]:
    hard = [{"text": "hard", "stars": 9}]
    tables = {"chat/a.parquet": CHAT, "code/easy.parquet": CODE, "code/hard.parquet": hard}
    return {"README.md": readme.encode(), **{name: parquet(rows) for name, rows in tables.items()}}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """A fake hub with one data set, and both libraries pointed at it with empty caches."""
    sets = FakeHub({A: by_split()}, {"main": A}, {"v1.0": A}, kind="datasets")
    with fake_hub.pointed(sets, monkeypatch, tmp_path) as served:
        for name, value in {
            "HF_ENDPOINT": served.endpoint,
            "HF_HUB_OFFLINE": False,
            "HF_UPDATE_DOWNLOAD_COUNTS": False,
            "STREAMING_READ_MAX_RETRIES": 2,
            "STREAMING_OPEN_MAX_RETRIES": 2,
        }.items():
            monkeypatch.setattr(datasets.config, name, value)
        caches(monkeypatch, tmp_path)
        yield served


def caches(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """Both libraries' caches below ``home``, with nothing of them kept in memory."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", home / "datasets" / "downloads")
    HfFileSystem.clear_instance_cache()


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def find(
    config: str | None = None, split: str | None = None, revision: str | None = None, *, repo: str = REPO
) -> tuple[data_hub.HubRows, list[str]]:
    notes: list[str] = []
    return data_hub.find(repo, config, split, revision, notes.append), notes


def read(found: data_hub.HubRows, *, streaming: bool = False) -> list[dict[str, Any]]:
    numbered = list(data_hub.rows(found, streaming=streaming))
    assert [number for number, _ in numbered] == list(range(1, len(numbered) + 1))
    return [row for _, row in numbered]


def refused(kind: type[PeftctlError], *parts: str, call: Any = find, **asked: Any) -> PeftctlError:
    """The error, of exactly that kind, whose message and hint hold ``parts`` and nothing secret."""
    with pytest.raises(PeftctlError) as caught:
        call(**asked)
    text = str(caught.value)
    assert type(caught.value) is kind, text
    assert not [part for part in parts if part not in text], text
    assert SECRET not in text
    assert "\n" not in caught.value.message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value


def broken(kind: type[PeftctlError], *parts: str, streaming: bool = False, **asked: Any) -> None:
    """The same, for what is found and cannot be read."""
    found, _ = find(**asked)
    refused(kind, *parts, call=read, found=found, streaming=streaming)


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("revision", [None, "main", "v1.0", A])
def test_a_revision_becomes_a_commit_and_its_rows_come_in_order(
    hub: FakeHub, revision: str | None, streaming: bool
) -> None:
    found, notes = find(revision=revision)
    assert (found, notes) == (data_hub.HubRows(REPO, "default", "train", A), [])
    assert read(found, streaming=streaming) == TRAIN
    assert read(find(split="test", revision=revision)[0], streaming=streaming) == TEST


def test_streaming_prepares_no_copy_and_reads_one_that_is_there(hub: FakeHub, tmp_path: Path) -> None:
    found, _ = find()
    assert read(found, streaming=True) == TRAIN
    assert not list(tmp_path.rglob("*.arrow"))
    assert set(hub.served) == {"train.jsonl"}
    hub.served.clear()
    assert read(found) == TRAIN
    assert list(tmp_path.rglob("*.arrow"))
    assert set(hub.served) == {"train.jsonl", "test.jsonl"}
    hub.requests.clear()
    assert read(found) == read(found, streaming=True) == TRAIN
    assert hub.requests == []


def test_a_pinned_commit_gives_the_same_rows_after_the_branch_moved(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found, _ = find()
    hub.commits[B] = {"train.jsonl": jsonl(TEST)}
    hub.branches["main"] = B
    assert read(found, streaming=True) == read(found) == TRAIN
    assert find()[0].revision == B
    assert read(find()[0]) == TEST

    caches(monkeypatch, tmp_path / "another")
    assert read(find(revision=A)[0]) == TRAIN
    hub.requests.clear()
    for config, split in ((None, None), ("default", "train")):
        assert read(find(config, split, A)[0]) == TRAIN
    assert hub.requests == []


def test_a_config_and_split_are_chosen_or_asked_for(hub: FakeHub) -> None:
    hub.commits[A] = by_config()
    refused(UsageError, REPO, "several configs", "allowed: chat, code")
    refused(UsageError, "no such config (found cade)", "allowed: chat, code", "did you mean code?", config="cade")
    refused(UsageError, "several splits", "allowed: easy, hard", config="code")
    refused(UsageError, "no such split (found hrad)", "easy, hard", "did you mean hard?", config="code", split="hrad")
    for streaming in (True, False):
        found, _ = find("chat")
        assert (found.config, found.split) == ("chat", "train")
        assert read(found, streaming=streaming) == CHAT
        assert read(find("code", "easy")[0], streaming=streaming) == CODE


def test_what_is_pinned_is_chosen_the_same_from_the_cache(hub: FakeHub) -> None:
    hub.commits[A] = by_config()
    read(find("code", "hard")[0])
    hub.requests.clear()
    refused(UsageError, "several configs", "allowed: chat, code", revision=A)  # though one is prepared
    refused(UsageError, "several splits", "allowed: easy, hard", config="code", revision=A)
    assert hub.requests == []
    assert find("chat", revision=A)[0].config == "chat"
    assert hub.requests != []


@pytest.mark.parametrize("default", ["named default", "marked so"])
def test_the_default_config_and_the_only_split_need_no_name(hub: FakeHub, default: str) -> None:
    name = "default" if default == "named default" else "code\n  default: true"
    readme = CONFIGS.replace("code\n", f"{name}\n").replace("  - split: hard\n    path: code/hard.parquet\n", "")
    hub.commits[A] = by_config(readme)
    found, _ = find()
    assert (found.config, found.split) == (name.split("\n")[0], "easy")
    assert read(found) == CODE


def test_the_test_split_alone_is_taken_and_two_without_train_are_not(hub: FakeHub) -> None:
    hub.commits[A] = {"test.jsonl": jsonl(TEST)}
    assert find()[0].split == "test"
    hub.branches["main"], hub.commits[B] = B, {"test.jsonl": jsonl(TEST), "validation.jsonl": jsonl(TEST)}
    refused(UsageError, "several splits", "allowed: test, validation")


def test_what_does_not_exist(hub: FakeHub) -> None:
    refused(UsageError, "acme/tyni: no such data set", hub.endpoint, "./name", repo="acme/tyni")
    hub.tags["v2.0"] = A
    refused(UsageError, "'v1.1'", "did you mean v1.0?", "branches: main", "v2.0", revision="v1.1")
    refused(UsageError, f"{B!r}", "branches: main", revision=B)
    hub.requests.clear()
    refused(UsageError, "'a b'", "local file", "owner/name", repo="a b")
    refused(UsageError, "'../x'", "branch", revision="../x")
    assert hub.requests == []


@pytest.mark.parametrize("files_only", [True, False])
def test_a_gated_data_set(hub: FakeHub, files_only: bool) -> None:
    hub.refuse, hub.refuse_files = (None, GATED) if files_only else (GATED, None)
    said = ("data set is gated (403)", f"access on {hub.endpoint}/datasets/{REPO}", "HF_TOKEN")
    refused(MachineError, *said)
    assert hub.served == []


@pytest.mark.parametrize("streaming", [True, False])
def test_access_that_ends_before_the_rows_are_read(hub: FakeHub, streaming: bool) -> None:
    found, _ = find()
    hub.refuse_files = (403, "", f"the token {SECRET} may not read this")
    refused(MachineError, REPO, "(403)", call=read, found=found, streaming=streaming)


def test_no_access(hub: FakeHub) -> None:
    hub.refuse = (401, "", f"the token {SECRET} is wrong")
    refused(MachineError, REPO, "(401)", "check the name", "HF_TOKEN")


@pytest.mark.parametrize("letter", ["\x0b", "é"])
def test_a_token_that_cannot_be_sent_is_not_shown(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, letter: str) -> None:
    monkeypatch.setenv("HF_TOKEN", f"{SECRET}{letter}x")
    refused(MachineError, REPO, "the token")
    assert hub.requests == []


@pytest.mark.parametrize("how", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "refused", "answers 503", "answers 429"])
def test_out_of_reach_a_prepared_copy_serves_and_that_is_said(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    read(find("default", revision="v1.0")[0])
    read(find()[0])
    reason = "HF_HUB_OFFLINE is set"
    if how.startswith("answers"):
        hub.refuse, reason = (int(how.split()[1]), "", ""), f"the hub {how.replace('answers', 'answered')}"
    elif how == "refused":
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        reason = "cannot be reached"
    else:
        monkeypatch.setattr(*((constants, how, True) if "HUB" in how else (datasets.config, "HF_HUB_OFFLINE", True)))
    hub.requests.clear()
    for revision in (None, "main", "v1.0", A):
        found, notes = find(revision=revision)
        if notes or revision != A:
            assert len(notes) == 1
            assert reason in notes[0]
            assert f"using the cached commit {A}" in notes[0]
        assert read(found, streaming=True) == read(found) == TRAIN
    assert find(split="test")[0].split == "test"
    assert not [request for request in hub.requests if "OFFLINE" in how or "resolve" in request]
    refused(UsageError, "no such split (found tset)", "did you mean test?", split="tset")
    refused(MachineError, reason, "holds no prepared copy", "local file", revision="v9")
    refused(MachineError, reason, "holds no prepared copy", repo="acme/other")


def test_offline_only_what_was_prepared_is_there(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commits[A] = by_config()
    read(find("code", "easy")[0])
    streamed, _ = find("chat")
    assert read(streamed, streaming=True) == CHAT
    offline(monkeypatch)
    refused(MachineError, "HF_HUB_OFFLINE is set", "no prepared copy of config chat", config="chat")
    refused(UsageError, "several configs", "allowed: chat, code")
    refused(MachineError, "HF_HUB_OFFLINE is set", "no prepared copy", call=read, found=streamed, streaming=True)
    assert read(find("code", "hard")[0]) == [{"text": "hard", "stars": 9}]


def test_a_copy_that_another_program_prepared_serves_unless_made_with_settings_of_its_own(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets.load_dataset(REPO, data_files="test.jsonl")
    with monkeypatch.context() as patch:
        offline(patch)
        refused(MachineError, "holds no prepared copy")
    datasets.load_dataset(REPO)
    offline(monkeypatch)
    found, _ = find()
    assert (found.config, found.split, found.revision) == ("default", "train", A)
    refused(UsageError, "allowed: default; did you mean default?", config="defualt")
    assert read(found) == TRAIN


def test_a_copy_of_another_commit_is_never_taken(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """As load_dataset does where the hub fails it: any commit that is in the cache, whatever was asked for."""
    old, _ = find()
    assert read(old) == TRAIN
    hub.commits[B] = {"train.jsonl": jsonl(TEST)}
    hub.branches["main"] = B
    new, _ = find()
    hub.refuse = (503, "", "")
    refused(MachineError, "broke off (the hub answered 503)", call=read, found=new)
    refused(MachineError, "holds no prepared copy", revision=B)
    found, notes = find()
    assert (found, len(notes)) == (old, 1)
    assert read(found) == TRAIN


def test_a_readme_that_cannot_be_had_is_not_taken_for_none(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library goes on without it, and finds one config with all the files."""
    hub.commits[A] = by_config()
    send = fake_hub._Handler._file

    def readme_fails(self: Any, revision: str, name: str) -> None:
        return self._refuse(503, "", "") if name == "README.md" else send(self, revision, name)

    monkeypatch.setattr(fake_hub._Handler, "_file", readme_fails)
    refused(MachineError, REPO, "the hub answered 503")


@pytest.mark.parametrize("streaming", [True, False])
def test_a_file_that_cannot_be_parsed_is_named_by_its_config_and_split(hub: FakeHub, streaming: bool) -> None:
    hub.commits[A]["train.jsonl"] += b'{"prompt": "half\n'
    broken(DataError, REPO, "config default", "split train", A[:12], "cannot be parsed", streaming=streaming)
    hub.commits[B] = by_config() | {"chat/a.parquet": b"PAR1 and no more"}
    hub.branches["main"] = B
    broken(DataError, REPO, "config chat", "split train", "cannot be parsed", streaming=streaming, config="chat")


def test_rows_with_other_columns_are_no_rows_of_that_file(hub: FakeHub) -> None:
    hub.commits[A] = {"train-1.jsonl": jsonl(CHAT), "train-2.jsonl": jsonl(CODE)}
    broken(DataError, "config default", "split train", "stars")


@pytest.mark.parametrize("streaming", [True, False])
def test_a_download_that_breaks_off(hub: FakeHub, streaming: bool) -> None:
    found, _ = find()
    hub.break_off = "train.jsonl"
    refused(MachineError, REPO, "broke off", "run again", call=read, found=found, streaming=streaming)
    hub.break_off = ""
    assert read(found, streaming=streaming) == TRAIN


def test_a_loading_script_is_never_run(hub: FakeHub, tmp_path: Path) -> None:
    hub.commits[A]["tiny.py"] = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    refused(DataError, REPO, "loading script tiny.py", "never run")
    assert hub.served == []
    assert not (tmp_path / "ran").exists()


def test_files_that_make_no_rows(hub: FakeHub) -> None:
    hub.commits[A] = {"LICENSE": b"none", "model.gguf": b"x"}
    refused(DataError, REPO, "no files of rows")
    hub.commits[B] = by_config(
        CONFIGS.replace("config_name: chat", "config_name: chat\n  default: true\n").replace(
            "config_name: code", "config_name: code\n  default: true\n"
        )
    )
    refused(DataError, REPO, "README", "several default configs", revision=B)


def test_a_folder_of_the_same_name_is_not_taken_for_it(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / REPO).mkdir(parents=True)
    (tmp_path / REPO / "train.jsonl").write_bytes(jsonl(TEST))
    monkeypatch.chdir(tmp_path)
    assert read(find()[0]) == TRAIN


@pytest.mark.parametrize("streaming", [True, False])
def test_values_are_plain_python_and_images_stay_bytes(hub: FakeHub, streaming: bool) -> None:
    from PIL import Image

    Image.new("RGB", (2, 2)).save(file := io.BytesIO(), "PNG")
    picture = {"bytes": file.getvalue(), "path": None}
    features = datasets.Features({"text": datasets.Value("string"), "images": datasets.List(datasets.Image())})
    table = pa.Table.from_pylist([{"text": "a", "images": [picture]}], schema=features.arrow_schema)
    pq.write_table(table, file := io.BytesIO())
    hub.commits[A] = {"train.parquet": file.getvalue()}
    assert read(find()[0], streaming=streaming) == [{"text": "a", "images": [picture]}]


@pytest.mark.parametrize("streaming", [True, False])
def test_a_column_of_mixed_types_comes_as_it_was_written(hub: FakeHub, streaming: bool) -> None:
    mixed = [
        {"messages": [{"content": "a", "arguments": {"x": 1}}]},
        {"messages": [{"content": "b", "arguments": "s"}]},
    ]
    hub.commits[A] = {"train.jsonl": jsonl(mixed)}
    assert read(find()[0], streaming=streaming) == mixed


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(
    "where", ["huggingface_hub.file_download.http_get", "datasets.arrow_writer.ArrowWriter.finalize"]
)
def test_a_full_disk(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, fault: int, where: str) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(fault, os.strerror(fault))

    monkeypatch.setattr(where, full)
    broken(MachineError, REPO, "full", "HF_HOME")


def test_a_server_that_is_no_hub(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake_hub._Handler, "_api", lambda self, rest: self._send(200, b"<html>Welcome!</html>", {}))
    refused(MachineError, hub.endpoint, "HF_ENDPOINT")
    monkeypatch.setattr(fake_hub._Handler, "_api", lambda self, rest: self._json({"id": REPO, "sha": "../../x"}))
    refused(MachineError, hub.endpoint, "HF_ENDPOINT")


@pytest.mark.slow
def test_the_environment_alone_points_to_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    """As users have it: the libraries read their environment as they are imported, which no other test here shows."""
    program = (
        "import sys; from peftctl.data import hub; found = hub.find(sys.argv[1], None, None, None, print);"
        "print(sum(1 for _ in hub.rows(found, streaming=False)))"
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
    }
    for extra, said in ({}, ""), ({"HF_HUB_OFFLINE": "1"}, f"using the cached commit {A}"):
        done = subprocess.run(
            [sys.executable, "-c", program, REPO], env=environment | extra, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert said in done.stdout
        assert done.stdout.splitlines()[-1] == str(len(TRAIN))
        assert done.stderr == ""  # no bars, no log


def test_the_library_is_not_imported_before_it_is_needed() -> None:
    program = "import sys, peftctl.data.hub; sys.exit(bool({'datasets', 'huggingface_hub'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
