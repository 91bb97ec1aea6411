"""peftctl: parameter-efficient fine-tuning from a YAML recipe.

``peftctl.load(run)`` opens a finished run for use from Python; everything else is the command line's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftctl.run import load

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``load`` needs torch; importing peftctl must not."""
    if name == "load":
        from peftctl.run import load

        return load
    raise AttributeError(f"module 'peftctl' has no attribute {name!r}")
