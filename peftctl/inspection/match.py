"""What an entry of ``targets`` matches in a model, and what it just misses."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from peftctl.errors import UsageError
from peftctl.inspection import groups, roles
from peftctl.inspection.coverage import REFUSALS, Resolver, reason
from peftctl.inspection.facts import Match, Matched
from peftctl.inspection.groups import of_linear
from peftctl.methods import METHODS
from peftctl.methods.names import matches
from peftctl.model import targets
from peftctl.model.targets import LONGEST
from peftctl.nearest import distance

NEAR = 6


def match(model: Any, pattern: str) -> Match:
    """Raises UsageError where the pattern is empty, or longer than any name."""
    if not 0 < len(pattern) <= LONGEST:
        raise UsageError(f"--match: of no use (found {len(pattern):,} characters); allowed: 1 to {LONGEST}")
    linear = set(Resolver(model).universe())
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if name}
    every = {name for name in kinds if matches(pattern, name)}
    try:
        found, refused = set(targets.resolve(model, [pattern])), ""
    except REFUSALS as error:
        found, refused = every & linear, reason(error)
    experts = tuple(_by_name([name for name in groups.experts(model) if matches(pattern, name)]))
    return Match(
        pattern,
        _grouped(found, linear, kinds),
        _grouped(every - linear, set(kinds), kinds) if pattern != targets.ALL_LINEAR else (),
        _near(pattern, found, linear) if pattern != targets.ALL_LINEAR else (),
        refused,
        _taken_by(model, pattern) if refused else (),
        experts,
    )


def _taken_by(model: Any, pattern: str) -> tuple[str, ...]:
    """The methods with targets of their own, which ``pattern`` names some of."""
    found = []
    for name, method in METHODS.items():
        with suppress(*REFUSALS):
            if (own := method.targetable(model)) is not None and targets.resolve(model, [pattern], own):
                found.append(name)
    return tuple(found)


def _grouped(found: set[str], universe: set[str], kinds: dict[str, str]) -> tuple[Matched, ...]:
    of = _by_name(universe)
    names = [name for name in kinds if name in found]
    return tuple(
        Matched(short, len(each), len(of[short]), of_linear(short), kinds[each[0]])
        for short, each in _by_name(names).items()
    )


def _by_name(names: set[str] | list[str]) -> dict[str, list[str]]:
    """Full names under those that have a star for each layer number."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(roles.collapsed(name), []).append(name)
    return found


def _near(pattern: str, found: set[str], linear: set[str]) -> tuple[str, ...]:
    """Where something matched, layers that are called the same elsewhere; else the names that are most like it."""
    shorts = list(_by_name(sorted(linear)))
    if found:
        last = {name.rsplit(".", 1)[-1] for name in found}
        taken = {roles.collapsed(name) for name in found}
        missed = [name for name in shorts if name not in taken and name.rsplit(".", 1)[-1] in last]
        return tuple(missed[:NEAR])
    asked = pattern.lower().rsplit(".", 1)[-1].strip("*?")
    ranked = sorted((_far(asked, name), name) for name in shorts)
    most = max(1, len(asked) // 2)
    return tuple(name for far, name in ranked if far <= most)[:NEAR]


def _far(asked: str, name: str) -> int:
    """How many edits away a name's end is; none where one holds the other."""
    last = name.rsplit(".", 1)[-1].lower()
    if len(asked) >= 3 and (asked in last or last in asked):
        return 0
    return distance(asked[:64], last)
