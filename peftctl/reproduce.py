"""A run trained again from its resolved recipe, and whether the bits agree."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from itertools import zip_longest
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
    then, logged = _environment(run.path), _losses(run.path)
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
    losses = zip_longest(logged, _losses(again))
    return Reproduction(
        run=str(run.path),
        again=str(again),
        tensors=tensors,
        differing=differing,
        steps=int(run.manifest["steps"]),
        step=next(((one or other)[0] for one, other in losses if one != other), None),
        versions=tuple(rundir.differences(then, _environment(again))),
    )


def _environment(run: Path) -> dict[str, Any]:
    """The versions and the machine of a run. Raises UsageError where it does not say."""
    try:
        found: dict[str, Any] = json.loads((run / "environment.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise UsageError(f"{run / 'environment.json'} cannot be read, which says what the run was made on") from None
    return found


def _losses(run: Path) -> list[tuple[int, float | None]]:
    """Step and loss of every step event of a run's log. Raises UsageError where it cannot be read."""
    try:
        lines = (run / rundir.LOG).read_text("utf-8").splitlines()
        events = [json.loads(line) for line in lines]
        return [(event["step"], event["loss"]) for event in events if event["event"] == "step"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{run / rundir.LOG} cannot be read, which has the losses to compare") from None


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
