"""No network but this machine's own, a clean environment, one thread, a home of its own for every test."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1"
)
os.environ.setdefault("OMP_NUM_THREADS", "1")


HOMES = itertools.count()
# Of a slow test with more cases than this, scripts/test takes so many, evenly spaced, and of those that are marked
# `whole` none; --whole takes them all.
MOST = 4


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="every case of the slow tests, as scripts/proofs cases does")


# What is in these is slow, but for what is marked quick.
SLOW = tuple(Path(__file__).parent / folder for folder in ("integration", "properties", "distributed"))


# Of these, which make many models, scripts/check takes what is marked quick; they are fast enough for every case.
THOROUGH = {
    f"test_{name}.py"
    for name in (
        "generic", "inspection_adapter", "inspection_model", "lora_forms", "lora_places", "lora_variants",
        "merge_blocks", "preflight", "prompt_methods", "selection", "xlora",
    )
}  # fmt: skip


@pytest.hookimpl(tryfirst=True)  # before -m chooses by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in SLOW) and not item.get_closest_marker("quick"):
            item.add_marker("slow")
        if item.path.name in THOROUGH and not item.get_closest_marker("quick"):
            item.add_marker("thorough")
    _leave_out(config, items)


def _leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--whole"):
        return
    cases: dict[str, list[pytest.Item]] = {}
    left = {id(item) for item in items if item.get_closest_marker("whole")}
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("every"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for of_one in cases.values():
        taken = {round(at * (len(of_one) - 1) / (MOST - 1)) for at in range(MOST)}
        left |= {id(item) for at, item in enumerate(of_one) if len(of_one) > MOST and at not in taken}
    config.hook.pytest_deselected(items=[item for item in items if id(item) in left])
    items[:] = [item for item in items if id(item) not in left]


@pytest.fixture(autouse=True)
def _own_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    # mktemp would look through all homes before this one for a free number.
    home = tmp_path_factory.getbasetemp() / f"cache-{next(HOMES)}"
    home.mkdir()
    monkeypatch.setenv("PEFTCTL_CACHE", str(home))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise ConnectionRefusedError(f"tests reach no network: {address[0]}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama's folder, made once. Tests read it; one that changes it makes its own."""
    from tests import tiny

    return tiny.save(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    import sys

    yield
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
