"""What an unexpected error leaves: one file with all that a report of it needs, and no secret."""

from __future__ import annotations

import os
import platform
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from peftctl import __version__
from peftctl.cache import cache_home

PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "pydantic", "typer")
SECRET_NAMES = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|(^|_)AUTH(_|$)", re.IGNORECASE)
SECRET_SHAPES = re.compile(r"hf_[A-Za-z0-9]{8,}|sk-[A-Za-z0-9_-]{16,}|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")
SHORTEST_SECRET = 6


def write(error: BaseException) -> Path | None:
    """Write the log of ``error`` and return its path; None where no folder can be written to."""
    name = f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    homes: tuple[Callable[[], Path], ...] = (cache_home, lambda: Path(tempfile.gettempdir()) / "peftctl")
    for home in homes:
        with suppress(OSError, RuntimeError):
            folder = home() / "logs"
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder / name, error)
            return folder / name
    return None


def _write(path: Path, error: BaseException) -> None:
    lines = [
        f"peftctl {__version__}, Python {platform.python_version()}, {platform.platform()}",
        ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
        f"command: {' '.join([Path(sys.argv[0]).name, *sys.argv[1:]])}",
        "",
        "".join(traceback.format_exception(error)),
    ]
    path.write_text(redact("\n".join(lines)), encoding="utf-8", errors="backslashreplace")


def redact(text: str) -> str:
    """``text`` without what looks like a secret, and without the value of any secret-sounding variable."""
    # Longest first: a secret that begins with another one must not leave its end behind.
    for name, value in sorted(os.environ.items(), key=lambda item: -len(item[1])):
        if SECRET_NAMES.search(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, f"<{name}>")
    return SECRET_SHAPES.sub("<secret>", text)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"
