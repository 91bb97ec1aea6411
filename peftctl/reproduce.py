"""A run trained again from its resolved recipe, and whether the bits agree."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError
from peftctl.events import Events
from peftctl.model import identity
from peftctl.model.locate import locate
from peftctl.recipe import dump
from peftctl.recipe.schema import TrackSettings
from peftctl.run import Run
from peftctl.train import job, rundir

AGAIN = "-again"


@dataclass(frozen=True)
class Reproduction:
    """``again``: the directory of the second run. ``tensors``: how many of the published ones were compared, of which
    ``differing`` are not the same, each by how much at most (None where one run has it alone, or shapes differ).
    ``step``: the first whose logged loss is another, None where none is. ``versions``: what may be why.
    """

    run: str
    again: str
    tensors: int
    differing: dict[str, float | None]
    steps: int
    step: int | None
    versions: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether every bit of what was published and every logged loss agrees."""
        return not self.differing and self.step is None

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain values."""
        return {"kind": "reproduction", "same": self.same, **asdict(self)}


def reproduce(run: Run, output: Path | None, events: Events) -> Reproduction:
    """Train ``run`` again into ``output`` (its own name and -again, if None) and compare.

    Raises UsageError where its base is another now, and whatever training raises.
    """
    run.check_intact()
    if lengthened := run.manifest.get("lengthened"):
        step, steps = lengthened[-1]
        raise UsageError(
            f"{run.path} was to have {steps} steps until it had made {step}, and then got another length: "
            "no recipe alone gives the same bits",
            "train for the first length, and go on from there with --resume, as it was done",
        )
    again = output or run.path.with_name(run.path.name + AGAIN)
    if again.absolute() == run.path:
        raise UsageError(f"--output: {again} is the run itself")
    recipe = replace(run.recipe, output=str(again), track=TrackSettings())
    recipe = recipe.with_settings("train", "--reproduce", max_time=None)
    identity.check(locate(recipe, lambda _: None), dict(run.manifest["base"]))
    job.train(recipe, dump(recipe), events)
    tensors, differing = _compared(run.artifact, again / run.artifact.name)
    then, now = (json.loads((path / "environment.json").read_text("utf-8")) for path in (run.path, again))
    losses = [list(_losses(path)) for path in (run.path, again)]
    return Reproduction(
        run=str(run.path),
        again=str(again),
        tensors=tensors,
        differing=differing,
        steps=int(run.manifest["steps"]),
        step=next((one[0] for one, other in zip(*losses, strict=False) if one != other), None),
        versions=tuple(rundir.differences(then, now)),
    )


def _losses(run: Path) -> Iterator[tuple[int, float | None]]:
    """The loss of every step event of a run's log."""
    with (run / rundir.LOG).open(encoding="utf-8") as file:
        for line in file:
            event = json.loads(line)
            if event["event"] == "step":
                yield event["step"], event["loss"]


def _compared(one: Path, other: Path) -> tuple[int, dict[str, float | None]]:
    """How many tensors two folders hold, and those that are not the same bits."""
    first, second = _tensors(one), _tensors(other)
    differing: dict[str, float | None] = {}
    for name in sorted({*first, *second}):
        a, b = first.get(name), second.get(name)
        if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
            differing[name] = None
        elif a.numpy().tobytes() != b.numpy().tobytes():
            most = float((a.double() - b.double()).abs().max())
            differing[name] = most if math.isfinite(most) else None
    return len({*first, *second}), differing


def _tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
