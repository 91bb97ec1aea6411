"""One path for every exporter: refuse early, write aside, verify, manifest, rename."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftctl.atomic import held, inventory, publish_directory, sha256, write_json
from peftctl.errors import MachineError, UsageError
from peftctl.exporters import EXPORTERS
from peftctl.exporters.contract import Exporter, Job
from peftctl.nearest import nearest
from peftctl.run import Run

SCRATCH = ".scratch"


@dataclass(frozen=True)
class Asked:
    """What the user chooses. ``type``: of what is written, None for the exporter's own choice."""

    to: str
    type: str | None = None
    base: Path | None = None
    verify: bool = True


def export(run: Run, out: Path, asked: Asked, note: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Publish the run's result in ``out`` and return the manifest written there. ``note`` hears what takes time.

    Raises UsageError where there is no such form, or where it or ``out`` will not do; MachineError where a program to
    check it with is not installed; VerificationError where what was written differs from the run. Then ``out`` does not
    exist.
    """
    exporter = _exporter(asked.to)
    type_ = _type(exporter, asked.type)
    if asked.base is not None and not exporter.opens_base:
        raise UsageError(f"--base: has no effect on {exporter.name}, which the base is no part of")
    if asked.base is not None and run.manifest["artifact"] == "model":
        raise UsageError(f"--base: has no effect on {run.path}, which trained the model itself: it needs no base")
    _check_installed(exporter, verify=asked.verify)
    run.check_intact()
    exporter.check(run, type_)
    says = {
        "to": asked.to,
        "type": type_ or None,
        "verify": asked.verify,
        "run": str(run.path),
        "run_sha256": sha256(run.path / "manifest.json"),
    }
    if (there := held(out, says)) is not None:
        note(f"{out} holds this already")
        return there
    _check_place(run, out)
    with publish_directory(out.absolute()) as folder:
        scratch = folder / SCRATCH
        scratch.mkdir()
        job = Job(run, folder, scratch, type_, asked.base, note)
        written = exporter.write(job)
        verified: Mapping[str, Any] = {"verified": "no", "reason": "--no-verify"}
        if asked.verify:
            verified = exporter.verify(job, written)
        shutil.rmtree(scratch)
        manifest = {
            "manifest": 1,
            "kind": "export",
            **says,
            "base": run.manifest["base"],
            "quantization": run.manifest.get("quantization"),
            **verified,
            "files": inventory(folder),
        }
        write_json(folder / "manifest.json", manifest)
    return manifest


def _check_place(run: Run, out: Path) -> None:
    """Raises UsageError where nothing can be made in ``out``."""
    if str(out) == ".":  # what an empty word becomes, too
        raise UsageError("OUT: names no folder to make")
    if out.absolute().is_relative_to(run.path):
        raise UsageError(f"{out}: lies in {run.path}, which is to be exported", "name a place outside of it")
    if (out / "manifest.json").exists():
        raise UsageError(
            f"{out}: exists already, and is not what this export gives", "name another place, or remove it"
        )


def _exporter(to: str) -> Exporter:
    if to not in EXPORTERS:
        raise UsageError(f"--to: no such form (found {to!r}); allowed: {', '.join(EXPORTERS)}{_meant(to, EXPORTERS)}")
    return EXPORTERS[to]


def _type(exporter: Exporter, asked: str | None) -> str:
    if asked is None:
        return next(iter(exporter.types), "")
    if not exporter.types:
        raise UsageError(f"--type: has no effect on {exporter.name} (found {asked})")
    asked = asked.lower()  # Q4_K_M is what most call it
    if asked not in exporter.types:
        allowed = ", ".join(exporter.types)
        raise UsageError(f"--type: no such type (found {asked!r}); allowed: {allowed}{_meant(asked, exporter.types)}")
    return asked


def _meant(word: str, allowed: Mapping[str, Any] | tuple[str, ...]) -> str:
    near = nearest(word, allowed)
    return f"; did you mean {near}?" if near else ""


def _check_installed(exporter: Exporter, *, verify: bool) -> None:
    for module, extra in exporter.written_with.items():
        if find_spec(module) is None:
            raise MachineError(
                f"{exporter.name} is written with {module}, which is not installed", f"pip install 'peftctl[{extra}]'"
            )
    for module, extra in exporter.checked_with.items() if verify else ():
        if find_spec(module) is None:
            raise MachineError(
                f"{exporter.name} is checked with {module}, which is not installed",
                f"pip install 'peftctl[{extra}]', or --no-verify, which the manifest will say",
            )
