"""Names matched by an adapter's patterns, which PEFT takes for regular expressions.

Such an expression can run for ever, and nothing stops Python's within a process. So one that is more than a plain
name is left to a process of its own, which has two seconds and little memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence

SECONDS = 2.0
_PLAIN = re.compile(r"[\w.-]+")
_CHILD = """
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
patterns, names, whole = json.load(sys.stdin)
tests = [re.compile(each).fullmatch if whole else re.compile(rf"(.*\\.)?({each})$").match for each in patterns]
print(json.dumps([next((at for at, test in enumerate(tests) if test(name)), None) for name in names]))
"""


def first_matches(patterns: Sequence[str], names: Sequence[str], *, whole: bool = False) -> list[int | None] | None:
    """For each name the place of the first pattern that matches it, or None.

    A pattern matches a name that ends with it behind a dot (PEFT's rank_pattern and alpha_pattern), or with
    ``whole`` the whole name (target_modules as text). None altogether where that could not be found out in time, or
    where a pattern is no regular expression.
    """
    if not patterns:
        return [None] * len(names)
    if all(_PLAIN.fullmatch(pattern) for pattern in patterns):
        places = {pattern: at for at, pattern in reversed(list(enumerate(patterns)))}
        return [_first(places, name, whole=whole) for name in names]
    asked = json.dumps([list(patterns), list(names), whole])
    command = [sys.executable, "-I", "-S", "-c", _CHILD]
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found: list[int | None] = json.loads(done.stdout)
    return found


def _first(places: dict[str, int], name: str, *, whole: bool) -> int | None:
    """The first of the plain patterns that ``name`` is, or ends with behind a dot."""
    ends = [name]
    if not whole:
        parts = name.split(".")
        ends = [".".join(parts[at:]) for at in range(len(parts))]
    return min((places[end] for end in ends if end in places), default=None)
