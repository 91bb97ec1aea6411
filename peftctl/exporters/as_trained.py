"""What a run left, as it lies there: the folder with a card that says how it came to be."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from peftctl.atomic import inventory, write_text
from peftctl.card import training
from peftctl.errors import VerificationError
from peftctl.exporters.contract import Job
from peftctl.model.adapter import MANIFEST_SAYS
from peftctl.run import Run

CARD = "README.md"


def copy(job: Job) -> None:
    """The folder, whose card says itself what the run's manifest says, which is not beside it."""
    shutil.copytree(job.run.artifact, job.folder, dirs_exist_ok=True)
    said = (job.folder / CARD).read_text("utf-8").replace(f" {MANIFEST_SAYS}", "")
    write_text(job.folder / CARD, f"{said}\n{training(job.run)}")


def unchanged(job: Job) -> Mapping[str, Any]:
    """Every file but the card is, byte for byte, the one whose reload gave the trained model's logits. Raises
    VerificationError."""
    if _but_the_card(inventory(job.folder)) != _but_the_card(_recorded(job.run)):
        raise VerificationError(f"{job.run.artifact} is not what the run's manifest says it is; nothing was published")
    return {"verified": "yes", "reload": job.run.manifest["verified"]["reload"]}


def _recorded(run: Run) -> dict[str, Any]:
    """The files of what was trained, as the run's manifest has them, by their names in that folder."""
    prefix = f"{run.manifest['artifact']}/"
    return {
        name.removeprefix(prefix): entry for name, entry in run.manifest["files"].items() if name.startswith(prefix)
    }


def _but_the_card(files: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in files.items() if name != CARD}
