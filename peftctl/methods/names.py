"""Names and patterns of a recipe against the names of a model's modules and parameters."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from peftctl.errors import UsageError
from peftctl.nearest import nearest


def matches(entry: str, name: str) -> bool:
    """Whether ``entry`` means ``name``: its last parts, or with ``*``, ``?`` or ``[...]`` a pattern over all of it."""
    if _is_pattern(entry):
        return fnmatch.fnmatchcase(name, entry)
    return name == entry or name.endswith(f".{entry}")


def _is_pattern(entry: str) -> bool:
    return any(sign in entry for sign in "*?[")


def may_meet(entry: str, other: str) -> bool:
    """Whether there can be a name that both entries mean."""
    return _is_pattern(entry) or _is_pattern(other) or matches(entry, other) or matches(other, entry)


def surely_within(entry: str, module: str) -> bool:
    """Whether all that ``entry`` means is in what the entry ``module`` means, or is it."""
    if _is_pattern(entry) or _is_pattern(module):
        return entry == module
    parts = entry.split(".")
    return any(matches(module, ".".join(parts[:end])) for end in range(1, len(parts) + 1))


def within(name: str, module: str) -> bool:
    """Whether ``name`` is ``module``'s, or that of something in it."""
    return name == module or name.startswith(f"{module}.")


def picked(setting: str, entries: Sequence[str], names: Collection[str], kind: str) -> list[str]:
    """Those of ``names`` that an entry means, in their order; ``kind`` is what they are, in one word.

    Raises UsageError naming every entry of ``setting`` that means none.
    """
    faults = [
        no_match(setting, entry, names, kind) for entry in entries if not any(matches(entry, name) for name in names)
    ]
    if faults:
        raise UsageError("\n".join(faults))
    return [name for name in names if any(matches(entry, name) for entry in entries)]


def numbers(setting: str, pattern: Mapping[str, Any] | None, names: Collection[str]) -> dict[str, Any]:
    """What ``pattern`` says of ``names``. Raises UsageError where an entry means none, or two differ about one."""
    picked(setting, list(pattern or {}), names, "target")
    found: dict[str, tuple[str, Any]] = {}
    for entry, number in (pattern or {}).items():
        for name in names:
            if not matches(entry, name):
                continue
            before, other = found.setdefault(name, (entry, number))
            if other != number:
                raise UsageError(f"{setting}: {before!r} and {entry!r} both mean {name}, and differ")
    return {name: number for name, (_, number) in found.items()}


def no_match(setting: str, entry: str, names: Collection[str], kind: str, listed: str = "") -> str:
    """What to say of an ``entry`` of ``setting`` that means none of ``names``; ``listed`` is what those are called,
    all together, where that is not ``kind``.
    """
    last_names = [name for name in dict.fromkeys(name.rsplit(".", 1)[-1] for name in names) if not name.isdigit()]
    near = nearest(entry.rsplit(".", 1)[-1], last_names)
    text = f"{setting}: {entry!r} matches no {kind}; {listed or f'{kind}s'} here: {', '.join(last_names) or 'none'}"
    return f"{text}; did you mean {near}?" if near else text
