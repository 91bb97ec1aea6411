"""A hub on the loopback: enough of its API for huggingface_hub and datasets to list and fetch, for uploads, and to be
let down."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

SECRET = "hf_thisIsTheTokenItself"
REPO = "acme/tiny"
UPLOADS = (["preupload"], ["commit"])
CONFIG, INDEX = b'{"model_type": "llama"}', "model.safetensors.index.json"


def sharded(shards: int = 2) -> dict[str, bytes]:
    """A model's files, its weights in ``shards``. Nothing in them is real but the index."""
    names = [f"model-{n:05}-of-{shards:05}.safetensors" for n in range(1, shards + 1)]
    index = {"weight_map": {f"layer.{n}": name for n, name in enumerate(names)}}
    return {
        "config.json": CONFIG,
        "generation_config.json": b"{}",
        "tokenizer.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
        INDEX: json.dumps(index).encode(),
        **{name: name.encode() * 100 for name in names},
    }


@dataclass
class FakeHub:
    """One repo: a model, or a data set where ``kind`` is "datasets".

    ``commits`` holds its files by commit; the rest says how it behaves, and what it was asked.
    """

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    tags: dict[str, str] = field(default_factory=dict)
    refuse: tuple[int, str, str] | None = None  # every answer: a status, X-Error-Code, X-Error-Message
    refuse_files: tuple[int, str, str] | None = None  # the same, for the files alone
    break_off: str = ""  # the connection is closed midway through this file
    served: list[str] = field(default_factory=list)  # files asked for with GET
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""
    kind: str = "models"
    private: bool = False
    card: dict[str, Any] = field(default_factory=dict)  # the front matter of its README.md
    takes: int = 1000  # bytes of a file that goes into a commit itself; larger ones are put first
    break_puts: bool = False  # the connection is closed midway through what is put
    made: list[dict[str, Any]] = field(default_factory=list)  # what creating the repo was asked with
    put: dict[str, bytes] = field(default_factory=dict)  # by SHA-256
    tokens: set[str] = field(default_factory=set)  # that requests came with

    def commit(self, revision: str) -> str | None:
        found = {**self.branches, **self.tags}.get(revision, revision)
        return found if found in self.commits else None


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    body = b""
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.body = self._read()
        self._answer()

    def do_PUT(self) -> None:
        if self.hub.break_puts:
            self.close_connection = True
            return self.connection.close()
        self.body = self._read()
        self._answer()

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        hub.requests.append(f"{self.command} {path}")
        if self.command != "PUT":  # which says in its address that it may
            hub.tokens.add(self.headers.get("Authorization", "").removeprefix("Bearer "))
        if hub.refuse:
            return self._refuse(*hub.refuse)
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if hub.kind != "models" and parts[0] == hub.kind:  # a model's files stand at the top, a data set's below
            del parts[0]
        match parts:
            case ["api", hub.kind, owner, name, *rest] if f"{owner}/{name}" == REPO and rest[:1] not in UPLOADS:
                return self._api(rest)
            case [owner, name, "resolve", revision, *file] if f"{owner}/{name}" == REPO:
                return self._file(revision, "/".join(file))
            case _ if self._upload(parts):
                return
        self._refuse(404, "RepoNotFound", "Repository not found")

    def _upload(self, parts: list[str]) -> bool:
        """Answer what an upload consists of; whether it was that."""
        match parts:
            case ["api", "repos", "create"]:
                self._create()
            case ["api", "validate-yaml"]:
                self._json({"errors": [], "warnings": []})
            case ["api", "models", owner, name, "preupload", _] if f"{owner}/{name}" == REPO:
                self._modes()
            case ["api", "models", owner, name, "commit", branch] if f"{owner}/{name}" == REPO:
                self._commit(branch)
            case [owner, name, "info", "lfs", "objects", "batch"] if f"{owner}/{name}" == f"{REPO}.git":
                self._batch()
            case ["put", digest]:
                self.hub.put[digest] = self.body
                self._json({})
            case _:
                return False
        return True

    def _api(self, rest: list[str]) -> None:
        hub = self.hub
        if rest == ["refs"]:
            listed = {
                kind: [{"name": n, "ref": f"refs/{kind}/{n}", "targetCommit": c} for n, c in refs.items()]
                for kind, refs in (("branches", hub.branches), ("tags", hub.tags), ("converts", {}))
            }
            return self._json(listed)
        what, revision, *folder = rest or ("revision", "main")
        commit = hub.commit(revision)
        if commit is None:
            return self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        files = hub.commits[commit]
        if what in ("tree", "paths-info"):
            listed = [_entry(name, data) for name, data in files.items()]
            folders = {name[:at] for name in files for at, letter in enumerate(name) if letter == "/"}
            listed += [{"type": "directory", "path": name, "oid": _etag(name.encode())} for name in sorted(folders)]
            if what == "tree":
                recursive = "true" in parse_qs(urlsplit(self.path).query.lower()).get("recursive", [])
                found = [each for each in listed if _within(each["path"], "/".join(folder), recursive)]
                return self._json(found) if found else self._refuse(404, "EntryNotFound", "no such folder")
            asked = parse_qs(self.body.decode())["paths"]
            return self._json([each for each in listed if each["path"] in asked])
        siblings = [{"rfilename": name} for name in files]
        about = {"private": hub.private, "cardData": hub.card}
        return self._json({"id": REPO, "sha": commit, "siblings": siblings, **about})

    def _create(self) -> None:
        """An empty repo with a first commit, or 409 where it is there."""
        hub, asked = self.hub, json.loads(self.body)
        hub.made.append(asked)
        if hub.commits:
            return self._json({"error": "You already created this model repo", "url": f"{hub.endpoint}/{REPO}"}, 409)
        hub.private = asked.get("visibility") == "private"
        hub.commits["0" * 40] = {".gitattributes": b""}
        hub.branches["main"] = "0" * 40
        self._json({"url": f"{hub.endpoint}/{REPO}"})

    def _modes(self) -> None:
        """How each file is to come, and which it is that the repo holds."""
        files = self.hub.commits[self.hub.branches["main"]]
        said = []
        for each in json.loads(self.body)["files"]:
            large = each["size"] > self.hub.takes
            held = files.get(each["path"])
            oid = None if held is None else hashlib.sha256(held).hexdigest() if large else _blob(held)
            mode = "lfs" if large else "regular"
            said.append({"path": each["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": said})

    def _batch(self) -> None:
        """Where to put large files; nothing for those that are here."""
        objects = []
        for each in json.loads(self.body)["objects"]:
            there = each["oid"] in self.hub.put
            upload = {"upload": {"href": f"{self.hub.endpoint}/put/{each['oid']}"}}
            objects.append({**each} if there else {**each, "actions": upload})
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, branch: str) -> None:
        hub = self.hub
        lines = [json.loads(line) for line in self.body.splitlines()]
        files = dict(hub.commits[hub.branches[branch]])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.put[value["oid"]]
        commit = hashlib.sha1(self.body).hexdigest()
        hub.commits[commit], hub.branches[branch] = files, commit
        self._json({"commitUrl": f"{hub.endpoint}/{REPO}/commit/{commit}", "commitOid": commit, "hookOutput": ""})

    def _file(self, revision: str, name: str) -> None:
        hub = self.hub
        commit = hub.commit(revision)
        if hub.refuse_files:
            return self._refuse(*hub.refuse_files)
        if commit is None or name not in hub.commits[commit]:
            return self._refuse(404, "EntryNotFound", "Entry not found", commit or "")
        data = hub.commits[commit][name]
        if self.command == "GET":
            hub.served.append(name)
        headers = {"ETag": f'"{_etag(data)}"', "X-Repo-Commit": commit}
        if asked := self.headers.get("Range", "").removeprefix("bytes="):
            first, last = asked.split("-")
            end = min(int(last or len(data)), len(data) - 1) + 1
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
            return self._send(206, data[int(first) : end], headers, cut=hub.break_off == name)
        self._send(200, data, headers, cut=hub.break_off == name)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, message: str, commit: str = "") -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": commit})

    def _send(self, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = self.close_connection or cut


def _entry(name: str, data: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(data), "oid": _etag(data)}


def _within(path: str, folder: str, recursive: bool) -> bool:
    below = path.removeprefix(f"{folder}/") if folder else path
    return (not folder or below != path) and (recursive or "/" not in below)


def _blob(data: bytes) -> str:
    """Git's name for a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """``hub`` on a port of its own, which ``hub.endpoint`` names."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def pointed(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, home: Path) -> Iterator[FakeHub]:
    """``hub`` served, and huggingface_hub pointed at it with a token, and with an empty cache below ``home``."""
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.01)))  # between the library's attempts
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("NO_PROXY", "*")
    with serve(hub) as served:
        for name, value in {
            "ENDPOINT": served.endpoint,
            "HUGGINGFACE_CO_URL_TEMPLATE": served.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }.items():
            monkeypatch.setattr(constants, name, value)
        close_session()
        yield served
        close_session()
