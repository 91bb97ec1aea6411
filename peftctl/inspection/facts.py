"""The facts of a model as plain values. Nothing here knows how they are found, so that showing them is quick."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# The sizes at which methods are counted.
SIZES = (8, 16, 64)
COUNTED_BY_PEFT = "counted by PEFT itself, which takes a minute"
NEEDED = "needs settings that have no default, and trains what they say"


@dataclass(frozen=True)
class Group:
    """Layers of one name, but for their numbers, of one shape and type.

    ``shape`` is (inputs, outputs) of a linear layer, that of the tensor otherwise; ``part`` the tower beside the
    language model that they belong to, "" for itself; ``tied``: their weight is another module's too, and counted
    there.
    """

    role: str
    part: str
    name: str
    shape: tuple[int, ...]
    layers: int
    type: str
    linear: bool
    parameters: int
    tied: bool = False


@dataclass(frozen=True)
class Choice:
    """Targets that a recipe may name. ``weights``: how many parameters the layers have that are covered;
    ``left_out``: the roles of linear layers that are not; ``default_of``: the methods that choose so by themselves.
    """

    name: str
    targets: tuple[str, ...]
    modules: int
    weights: int
    left_out: tuple[str, ...]
    default_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Count:
    """What ``method`` trains with its own choice of targets: ``trained`` by the value of its ``setting``, or under 0
    where it has none; ``why_not`` where it cannot go into the model, or was not counted.
    """

    method: str
    setting: str
    trained: Mapping[int, int] = field(default_factory=dict)
    why_not: str = ""


@dataclass(frozen=True)
class Matched:
    """Layers of one name but for their numbers: ``layers`` of ``of`` there are."""

    name: str
    layers: int
    of: int
    role: str
    type: str


@dataclass(frozen=True)
class Match:
    """What ``pattern`` matches: linear layers, other modules; ``near``: names that it just misses; ``refused``: what
    a recipe would be told that had it among its targets, "" for nothing; ``taken_by``: methods with targets of their
    own that take it all the same; ``experts``: the parameters of experts that it matches.
    """

    pattern: str
    linear: tuple[Matched, ...]
    others: tuple[Matched, ...]
    near: tuple[str, ...]
    refused: str
    taken_by: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Branch:
    """A module, ``depth`` below the model. ``name``: as its parent calls it, ``0-79`` for eighty that are alike;
    ``parameters``: of all of them, with what is below; ``shapes``: those of its own.
    """

    depth: int
    name: str
    type: str
    parameters: int
    shapes: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """What transformers builds of a config.

    ``tasks``: what peftctl can train it for, each with the class that is built; ``parameters`` counted once where
    ``tied`` has them under several names, and ``kinds`` of them; ``layers`` and ``width`` of the language model, 0
    where its config says neither; ``experts_by``: the methods that can adapt experts that are one tensor;
    ``left_alone``: what rows of text never go through. ``strange``: what in a folder's weights is not this model's.
    """

    class_name: str
    model_type: str
    tasks: Mapping[str, str]
    dtype: str
    layers: int
    width: int
    parameters: int
    kinds: Mapping[str, int]
    tied: tuple[tuple[str, ...], ...]
    groups: tuple[Group, ...]
    choices: tuple[Choice, ...]
    counts: tuple[Count, ...]
    experts_by: tuple[str, ...]
    left_alone: tuple[str, ...]
    tree: tuple[Branch, ...] = ()
    match: Match | None = None
    strange: tuple[str, ...] = ()


def written(entries: Sequence[str], *, listed: bool = False) -> str:
    """``targets`` as a recipe writes them; ``listed``: as a list, even if it is of one."""
    scalars = list(map(_scalar, entries))
    return scalars[0] if not listed and len(scalars) == 1 and scalars[0] == entries[0] else f"[{', '.join(scalars)}]"


def _scalar(entry: str) -> str:
    return entry if re.fullmatch(r"[\w.-]+", entry) else json.dumps(entry, ensure_ascii=False)
