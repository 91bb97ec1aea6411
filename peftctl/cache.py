"""The user's cache: what can be made again, kept because making it takes time."""

from __future__ import annotations

import os
from pathlib import Path

from peftctl.errors import MachineError


def cache_home() -> Path:
    """``$PEFTCTL_CACHE``, else ``$XDG_CACHE_HOME/peftctl``, else ``~/.cache/peftctl``. Made if absent."""
    written = os.environ.get("PEFTCTL_CACHE")
    home = Path(written) if written else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "peftctl"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(
            f"{home}: cannot be the cache: {error.strerror}", "PEFTCTL_CACHE names another folder"
        ) from None
    return home
