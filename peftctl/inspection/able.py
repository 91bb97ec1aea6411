"""What can be done with an adapter: whether ``merge`` and ``export`` would take it, as far as its files tell."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peftctl.inspection import problems
from peftctl.inspection.adapter_config import AdapterConfig
from peftctl.inspection.layouts import LAYOUTS
from peftctl.inspection.problems import Problem
from peftctl.inspection.published import Published
from peftctl.tables import table
from peftctl.tasks import TASKS

CHANGED = "files of its run are not what was published"


@dataclass(frozen=True)
class Able:
    """Whether something can be done with it: None where that is not known; and why not, or why it is not known."""

    able: bool | None
    reason: str = ""


def merges(config: AdapterConfig, found: Sequence[Problem], known: Published | None) -> Able:
    """Whether ``merge`` takes it, as was seen of its method with the pinned peft."""
    layout = LAYOUTS.get(config.peft_type)
    if layout and layout.prompt:
        return Able(False, "virtual tokens come before the input and change no weight")
    if config.method is None:
        return Able(False, f"peft {table('capabilities')['peft']} has no method {config.peft_type}")
    seen = table("capabilities")["methods"].get(config.method)
    if seen is not None and seen["merges"] != "yes":
        return Able(False, seen["merges"])
    # An adapter that names no task is taken for one of text generation.
    task, tasks = config.word("task_type") or "CAUSAL_LM", {each.peft_type: each for each in TASKS.values()}
    if task not in tasks:
        return Able(False, f"it is for {task}, and models are merged for {', '.join(tasks)}")
    if "labels" in tasks[task].uses and not (known and known.run):
        return Able(False, f"it is for {task}, and does not say its labels: its run does")
    if broken := problems.broken(found):
        return Able(False, broken)
    if known and known.differing:
        return Able(False, CHANGED)
    if seen is None:
        return Able(None, f"{config.method} was not tried with peft {table('capabilities')['peft']}")
    return Able(True)


def exports(merged: Able, known: Published | None) -> dict[str, Able]:
    """What ``export`` makes of the run that it is in: the adapter as it stands, or its base with it merged in.

    Empty for an adapter that is in no run, since there is nothing that could be exported.
    """
    if known is None or not known.run:
        return {}
    return {"adapter": Able(not known.differing, CHANGED if known.differing else ""), "merged": merged}


def is_error(found: Iterable[Problem]) -> bool:
    """Whether one of them means that the adapter does not do what it should."""
    return any(problem.level == "error" for problem in found)
