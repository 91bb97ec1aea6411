"""Experiment trackers, through Accelerate: TensorBoard, Weights & Biases, MLflow and whatever else it knows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftctl.errors import MachineError
from peftctl.events import Event, Listener
from peftctl.recipe.schema import Recipe

FOLDER = "tracking"


def check(names: Sequence[str]) -> None:
    """Raises MachineError naming the trackers whose package is not installed: Accelerate would leave them out."""
    from accelerate.tracking import get_available_trackers

    installed = {str(name.value) for name in get_available_trackers()}
    missing = [name for name in names if name not in installed]
    if missing:
        raise MachineError(
            f"track.to: {', '.join(missing)} cannot be reached: its package is not installed",
            f"pip install {' '.join(name.replace('_', '-') for name in missing)}",
        )


def track(accelerator: Any, recipe: Recipe, run: Path) -> Listener:
    """A listener that hands the numbers of step and eval events to the recipe's trackers."""
    accelerator.init_trackers(recipe.track.project)
    for tracker in accelerator.trackers:
        tracker.store_init_configuration(_flat(recipe))

    def listen(event: Event) -> None:
        if event["event"] in ("step", "eval"):
            group = "train" if event["event"] == "step" else "eval"
            numbers = {
                f"{group}/{key}": value
                for key, value in event.items()
                if isinstance(value, int | float) and key not in ("step", "steps")
            }
            accelerator.log(numbers, step=event["step"])
        elif event["event"] == "done":
            accelerator.end_training()

    return listen


def _flat(recipe: Recipe) -> dict[str, Any]:
    """The settings that runs are compared by, as dotted keys with plain values."""
    sections = {"model": recipe.model, "method": recipe.method, "train": recipe.train}
    return {
        f"{name}.{key}": value if isinstance(value, int | float | str | bool) else str(value)
        for name, section in sections.items()
        for key, value in section.model_dump(exclude={"targets"}, exclude_none=True).items()
    }
