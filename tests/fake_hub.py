"""A hub on the loopback: enough of its API for huggingface_hub and datasets to list and fetch, and to be let down."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPO = "acme/tiny"
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
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._answer()

    def _answer(self) -> None:
        hub, path = self.hub, urlsplit(self.path).path
        hub.requests.append(f"{self.command} {path}")
        if hub.refuse:
            return self._refuse(*hub.refuse)
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if hub.kind != "models" and parts[0] == hub.kind:  # a model's files stand at the top, a data set's below
            del parts[0]
        match parts:
            case ["api", hub.kind, owner, name, *rest] if f"{owner}/{name}" == REPO:
                return self._api(rest)
            case [owner, name, "resolve", revision, *file] if f"{owner}/{name}" == REPO:
                return self._file(revision, "/".join(file))
        self._refuse(404, "RepoNotFound", "Repository not found")

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
        return self._json({"id": REPO, "sha": commit, "siblings": [{"rfilename": name} for name in files]})

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

    def _json(self, value: Any) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

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
