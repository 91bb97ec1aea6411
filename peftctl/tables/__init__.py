"""What the pinned libraries can do, as data: read by ``check``, which must not import them.

``scripts/tables.py`` makes the JSON files from the installed versions; a test fails when they are stale.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any


@cache
def table(name: str) -> dict[str, Any]:
    """The table ``name``: model_types, peft_configs or capabilities."""
    loaded: dict[str, Any] = json.loads((files(__name__) / f"{name}.json").read_text("utf-8"))
    return loaded
