"""Files by path and URL: what opens, what is copied once, and what is said where neither can be."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry, known_implementations

from peftctl.data import files
from peftctl.data.files import file_name, is_url, local, open_binary
from peftctl.errors import DataError, MachineError


class Counting(MemoryFileSystem):
    """A remote file system that counts what is fetched, and fails where told to."""

    protocol = "counting"
    store: dict[str, Any] = {}  # noqa: RUF012 - as in its parent
    pseudo_dirs = [""]  # noqa: RUF012
    fetched = 0
    tells: Any = staticmethod(lambda info: info)
    failure: Exception | None = None
    cut = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("counting://", "memory://")))

    def info(self, path: str, **kwargs: Any) -> Any:
        if Counting.failure:
            raise Counting.failure
        return Counting.tells(super().info(path, **kwargs))

    def get_file(self, rpath: str, lpath: str, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        Counting.fetched += 1
        Path(lpath).write_bytes(self.cat_file(rpath)[: 1 if Counting.cut else None])


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counting]:
    for name, value in (("store", {}), ("fetched", 0), ("failure", None), ("cut", False)):
        monkeypatch.setattr(Counting, name, value)
    monkeypatch.setattr(Counting, "tells", staticmethod(lambda info: info))
    fsspec.register_implementation("counting", Counting, clobber=True)
    yield Counting()
    _registry.pop("counting")


@pytest.mark.parametrize(
    ("where", "url"),
    [
        ("s3://a/b", True),
        ("file:///a", True),
        ("zip://a::s3://b", True),
        ("a/b", False),
        ("/a", False),
        ("s3:/a", False),
        ("C:x", False),
        ("./s3://a", False),
        ("://a", False),
    ],
)
def test_a_url_begins_with_a_scheme(where: str, url: bool) -> None:
    assert is_url(where) is url


@pytest.mark.parametrize(
    ("where", "name"),
    [
        ("a/b.csv.gz", "b.csv.gz"),
        ("what?.csv", "what?.csv"),
        ("https://h/a/b.csv?x=/c.txt#d", "b.csv"),
        ("zip://in/a.csv::s3://b/c.zip", "a.csv"),
    ],
)
def test_a_name_is_what_stands_last_without_the_query_of_a_url(where: str, name: str) -> None:
    assert file_name(where) == name


def test_a_path_a_file_url_and_a_remote_url_give_the_same_bytes(tmp_path: Path, remote: Counting) -> None:
    (tmp_path / "a b.txt").write_bytes(b"one\ntwo\n")
    remote.pipe_file("/a.txt", b"one\ntwo\n")
    with fsspec.open("memory://test_files/a.txt", "wb") as file:
        file.write(b"one\ntwo\n")
    places = [str(tmp_path / "a b.txt"), f"file://{tmp_path}/a b.txt", "counting://a.txt", "memory://test_files/a.txt"]
    for where in places:
        with open_binary(where) as opened:
            assert opened.readline(3) == b"one"
            assert opened.seek(4) == 4
            assert list(opened) == [b"two\n"]


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").touch()
    for where in (f"{tmp_path}/trian.jsonl", f"file://{tmp_path}/trian.jsonl"):
        with pytest.raises(DataError) as caught:
            open_binary(where)
        assert caught.value.message == f"{where}: cannot be read: No such file or directory"
        assert caught.value.hint == f"did you mean {tmp_path}/train.jsonl?"
    with pytest.raises(DataError) as caught:
        open_binary(str(tmp_path / "nowhere" / "train.jsonl"))
    assert caught.value.hint == ""


def test_what_is_no_readable_file_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for where in (str(tmp_path), f"file://{tmp_path}"):
        with pytest.raises(DataError, match="is a folder, not a file of rows"):
            open_binary(where)
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        open_binary("x" * 300)
    with pytest.raises(DataError, match=r"cannot be read: .*null byte"):
        open_binary("a\0b")
    (tmp_path / "a").touch()
    with pytest.raises(DataError, match="cannot be read: Not a directory"):
        open_binary(str(tmp_path / "a" / "b"))

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # root may read everything
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        open_binary(str(tmp_path / "a"))


@pytest.mark.parametrize("take", [open_binary, local])
def test_an_unknown_protocol_is_refused_with_the_nearest(take: Any) -> None:
    with pytest.raises(DataError) as caught:
        take("htps://host/a.csv")
    assert caught.value.message == (
        "htps://host/a.csv: unknown protocol (found htps); allowed: file, hf, https, s3, gs, az, sftp and others that "
        "fsspec knows; did you mean https?"
    )
    with pytest.raises(DataError, match=r"unknown protocol \(found s4\)"):
        take("zip://a.csv::s4://b/c.zip")


@pytest.mark.parametrize("take", [open_binary, local])
def test_a_missing_package_is_named_as_pip_knows_it(take: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    known = {"class": "no_such_package.sub.Files", "err": "Install it"}
    monkeypatch.setitem(known_implementations, "lacking", known)
    with pytest.raises(MachineError) as caught:
        take("lacking://a.csv")
    assert caught.value.message == "lacking://a.csv: needs a package that is not installed"
    assert caught.value.hint == "pip install no-such-package"


@pytest.mark.parametrize("take", [open_binary, local])
def test_a_remote_file_that_is_not_there_is_the_datas_fault_and_the_network_the_machines(
    take: Any, remote: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"^counting://a.csv: cannot be read: No such file or directory$"):
        take("counting://a.csv")
    remote.pipe_file("/folder/a.csv", b"x")
    with pytest.raises(DataError, match="is a folder"):
        take("counting://folder")

    def fails(*_: Any, **__: Any) -> None:
        raise KeyError("host unknown\nmore")

    monkeypatch.setattr(Counting, "info", fails)
    monkeypatch.setattr(Counting, "_open", fails)
    with pytest.raises(MachineError, match=r"^counting://a.csv: cannot be .*host unknown"):
        take("counting://a.csv")


def test_a_network_that_fails_amid_a_file_is_the_machines_fault(
    remote: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Breaking:
        def read(self, size: int) -> bytes:
            raise KeyError("connection lost")

        def close(self) -> None:
            pass

    monkeypatch.setattr(Counting, "open", lambda *_: Breaking())
    with open_binary("counting://a.csv") as file, pytest.raises(MachineError, match=r"a.csv: cannot be read on.*lost"):
        file.read(1)


def test_a_local_file_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert local("a.csv") == tmp_path / "a.csv"
    assert local(f"file://{tmp_path}/a.csv") == tmp_path / "a.csv"
    assert not list(Path(os.environ["PEFTCTL_CACHE"]).iterdir())


def test_a_remote_file_is_copied_once_and_anew_when_it_has_changed(remote: Counting) -> None:
    remote.pipe_file("/a/Rows.jsonl.gz", b"one")
    first = local("counting://a/Rows.jsonl.gz")
    assert first.read_bytes() == b"one"
    assert first.name.endswith("-Rows.jsonl.gz")
    assert first.parent == Path(os.environ["PEFTCTL_CACHE"]) / "files"
    assert local("counting://a/Rows.jsonl.gz") == first
    assert remote.fetched == 1
    remote.pipe_file("/a/Rows.jsonl.gz", b"two")
    assert local("counting://a/Rows.jsonl.gz").read_bytes() == b"two"
    assert remote.fetched == 2
    assert first.read_bytes() == b"one"  # whoever reads it reads on
    assert sorted(path.suffix for path in first.parent.iterdir()) == [".gz", ".gz"]  # no lock, no aside


def test_two_urls_of_one_name_have_a_copy_each(remote: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "tells", staticmethod(lambda _: {"size": 3, "type": "file", "ETag": "same"}))
    remote.pipe_file("/a/x.csv", b"one")
    remote.pipe_file("/b/x.csv", b"two")
    assert (local("counting://a/x.csv").read_bytes(), local("counting://b/x.csv").read_bytes()) == (b"one", b"two")


def test_a_file_whose_versions_cannot_be_told_apart_is_copied_each_time(
    remote: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    tells = staticmethod(lambda info: {"name": info["name"], "size": info["size"], "type": "file", "url": "x"})
    monkeypatch.setattr(Counting, "tells", tells)
    remote.pipe_file("/x.csv", b"one")
    assert local("counting://x.csv").read_bytes() == b"one"
    remote.pipe_file("/x.csv", b"two")
    assert local("counting://x.csv").read_bytes() == b"two"
    assert len(list((Path(os.environ["PEFTCTL_CACHE"]) / "files").iterdir())) == 1


def test_an_etag_alone_tells_versions_apart_and_a_redirect_does_not(
    remote: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.pipe_file("/x.csv", b"one")
    for etag, url, fetched in (("a", "1", 1), ("a", "2", 1), ("b", "2", 2)):
        told = {"name": "x.csv", "size": 3, "type": "file", "ETag": etag, "url": url}
        monkeypatch.setattr(Counting, "tells", staticmethod(lambda _, told=told: told))
        local("counting://x.csv")
        assert remote.fetched == fetched


def test_a_cache_that_takes_no_files_is_the_machines_fault(remote: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.pipe_file("/x.csv", b"one")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(MachineError, match=r"/files cannot be written to: Permission denied"):
        local("counting://x.csv")


def test_a_copy_that_comes_cut_short_is_no_copy(remote: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.pipe_file("/x.csv", b"one")
    monkeypatch.setattr(Counting, "cut", True)
    with pytest.raises(MachineError, match=r"came cut short \(1 of 3 bytes\)"):
        local("counting://x.csv")
    assert not list((Path(os.environ["PEFTCTL_CACHE"]) / "files").iterdir())


def test_a_file_that_changes_while_it_is_copied_is_no_copy(remote: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    remote.pipe_file("/x.csv", b"one")
    get = Counting.get_file

    def changing(self: Counting, *args: Any, **kwargs: Any) -> None:
        get(self, *args, **kwargs)
        self.pipe_file("/x.csv", b"two")

    monkeypatch.setattr(Counting, "get_file", changing)
    with pytest.raises(MachineError, match="changed while it was copied"):
        local("counting://x.csv")
    assert not list((Path(os.environ["PEFTCTL_CACHE"]) / "files").iterdir())


def _take(start: Any, results: Any) -> None:
    start.wait()
    results.put((local("counting://x.csv").read_bytes(), Counting.fetched))


def test_two_processes_at_once_copy_once_and_both_read_it_whole(remote: Counting) -> None:
    remote.pipe_file("/x.csv", b"one" * 100_000)
    fork = multiprocessing.get_context("fork")  # with the store of the one file system in both
    start, results = fork.Barrier(2), fork.Queue()
    both = [fork.Process(target=_take, args=(start, results)) for _ in range(2)]
    for process in both:
        process.start()
    taken = [results.get(timeout=30) for _ in both]
    for process in both:
        process.join()
    assert [data for data, _ in taken] == [b"one" * 100_000] * 2
    assert sum(fetched for _, fetched in taken) == 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_pipe_or_a_device_is_refused_at_once(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="is a device or a pipe, not a file of rows"):
        open_binary(str(tmp_path / name))
    with pytest.raises(DataError, match="is a device or a pipe, not a file of rows"):
        open_binary("/dev/zero")


def test_a_server_that_is_not_there_is_the_network_s_fault_and_no_missing_file() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for read in (open_binary, local):
        with pytest.raises(MachineError, match="Cannot connect to host"):
            read(f"http://127.0.0.1:{port}/rows.jsonl")


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "ANSWERS_IN", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(5)
        with pytest.raises(MachineError, match=r"rows\.jsonl"):
            open_binary(f"http://127.0.0.1:{silent.getsockname()[1]}/rows.jsonl")
