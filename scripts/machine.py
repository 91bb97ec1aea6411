"""The machine and the versions a result was made with, for the pages in docs/results."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "safetensors")


def machine() -> str:
    """Processor, cores, memory and system in a line."""
    cpu = Path("/proc/cpuinfo").read_text("utf-8") if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*:\s*(.+)", cpu)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in cpu]
    what = " ".join([name[1] if name else platform.processor(), *flags])
    return f"{what}, {os.cpu_count()} cores, {memory:.0f} GiB, {platform.system()} {platform.machine()}"


def versions(packages: Sequence[str] = PACKAGES) -> str:
    """Python and the packages that matter, in a line."""
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join([f"Python {platform.python_version()}", *found])
