"""What a run goes on from: another run, or an adapter's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.atomic import inventory
from peftctl.errors import UsageError
from peftctl.methods import Method
from peftctl.model import identity
from peftctl.model.locate import Base
from peftctl.nearest import nearest

SETTING = "train.init_from"


@dataclass(frozen=True)
class Start:
    """The ``folder`` that another run published, or that PEFT saved."""

    folder: Path

    def facts(self) -> dict[str, Any]:
        """For the manifest: where it was, and what was in it."""
        return {"path": str(self.folder), "files": inventory(self.folder)}


def find(path: Path, base: Base, method: Method, note: Callable[[str], None]) -> Start:
    """The folder that ``path``, a run or an adapter's folder, means.

    Raises UsageError where there is none, where it is another method's, or where it was trained on another base than
    ``base``. ``note`` hears what cannot be known: a foreign adapter names its base at most.
    """
    if not path.is_dir():
        near = nearest(path.name, [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else [])
        raise UsageError(f"{SETTING}: no such folder: {path}", f"did you mean {path.with_name(near)}?" if near else "")
    run, manifest = _run(path)
    if manifest is None and _read(path / "adapter_config.json") is None:
        raise UsageError(f"{SETTING}: {path} is neither a finished run nor an adapter's folder")
    if manifest is not None and (there := manifest["method"]["name"]) != method.name:
        raise UsageError(f"{SETTING}: {run} was trained with {there} (this recipe: {method.name})")
    check_base(SETTING, path, base, note)
    return Start(path if manifest is None else run / manifest["artifact"])


def check_base(setting: str, path: Path, base: Base, note: Callable[[str], None]) -> None:
    """Raises UsageError where ``path``, a run or an adapter's folder that ``setting`` names, was trained on another
    base than ``base``. ``note`` hears what cannot be known: a foreign adapter names its base at most.
    """
    run, manifest = _run(path)
    if manifest is not None:
        try:
            identity.check(base, manifest["base"])
        except UsageError as error:
            raise UsageError(f"{setting}: {run} was trained on another base: {error.message}", error.hint) from None
        return
    named = (_read(path / "adapter_config.json") or {}).get("base_model_name_or_path")
    if named != base.name:
        note(f"{setting}: {path} says that its base is {named}, and not {base.name}; only its shapes can be checked")


def _run(path: Path) -> tuple[Path, dict[str, Any] | None]:
    """The run that ``path`` is, or whose artifact it is, with its manifest; None where it is none."""
    for run in (path, path.parent):
        manifest = _read(run / "manifest.json")
        if manifest is not None and manifest.get("kind") == "run" and path in (run, run / manifest["artifact"]):
            return run, manifest
    return path, None


def _read(path: Path) -> dict[str, Any] | None:
    """The JSON object in ``path``, or None."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
