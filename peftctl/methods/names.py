"""Names and patterns of a recipe against the names of a model's modules and parameters."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Sequence

from peftctl.errors import UsageError
from peftctl.nearest import nearest


def matches(entry: str, name: str) -> bool:
    """Whether ``entry`` means ``name``: its last parts, or with ``*``, ``?`` or ``[...]`` a pattern over all of it."""
    if any(sign in entry for sign in "*?["):
        return fnmatch.fnmatchcase(name, entry)
    return name == entry or name.endswith(f".{entry}")


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


def no_match(setting: str, entry: str, names: Collection[str], kind: str, listed: str = "") -> str:
    """What to say of an ``entry`` of ``setting`` that means none of ``names``; ``listed`` is what those are called,
    where that is not ``kind``.
    """
    last_names = [name for name in dict.fromkeys(name.rsplit(".", 1)[-1] for name in names) if not name.isdigit()]
    near = nearest(entry.rsplit(".", 1)[-1], last_names)
    text = f"{setting}: {entry!r} matches no {kind}; {listed or kind}s here: {', '.join(last_names) or 'none'}"
    return f"{text}; did you mean {near}?" if near else text
