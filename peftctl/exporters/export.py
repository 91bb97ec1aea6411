"""One path for every exporter: refuse early, write aside, verify, manifest, rename."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftctl.atomic import held, inventory, publish_directory, sha256, write_json
from peftctl.errors import UsageError
from peftctl.exporters import EXPORTERS
from peftctl.nearest import nearest
from peftctl.run import Run


def export(run: Run, out: Path, to: str, note: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Publish the run's result as ``to`` in ``out`` and return the manifest written there. ``note`` hears what takes
    time.

    Raises UsageError where there is no such form, or where it or ``out`` will not do; VerificationError where what
    was written differs from the run. Then ``out`` does not exist.
    """
    if to not in EXPORTERS:
        near = nearest(to, EXPORTERS)
        meant = f"; did you mean {near}?" if near else ""
        raise UsageError(f"--to: no such form (found {to!r}); allowed: {', '.join(EXPORTERS)}{meant}")
    exporter = EXPORTERS[to]
    run.check_intact()
    exporter.check(run)
    asked = {"to": to, "run": str(run.path), "run_sha256": sha256(run.path / "manifest.json")}
    if (there := held(out, asked)) is not None:
        note(f"{out} holds this already")
        return there
    if out.absolute().is_relative_to(run.artifact):
        raise UsageError(f"{out}: lies in {run.artifact}, which is to be exported", "name a place outside of it")
    with publish_directory(out.absolute()) as folder:
        verified = exporter.verify(run, folder, exporter.write(run, folder, note))
        manifest = {
            "manifest": 1,
            "kind": "export",
            **asked,
            "base": run.manifest["base"],
            "quantization": run.manifest.get("quantization"),
            **verified,
            "files": inventory(folder),
        }
        write_json(folder / "manifest.json", manifest)
    return manifest
