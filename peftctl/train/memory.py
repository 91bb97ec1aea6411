"""How much memory the run has needed."""

from __future__ import annotations

import resource
import sys


def peak_memory_bytes() -> int:
    """The most memory held so far: on the GPU where there is one, else by this process."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)
