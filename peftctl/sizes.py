"""Numbers of bytes for people."""

from __future__ import annotations


def size(count: float) -> str:
    """The number with the unit that suits it: 12.3 MB."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} bytes"
