"""llama.cpp's own quantiser, in a process of its own: what stops it there stops nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peftctl.errors import MachineError, VerificationError
from peftctl.gguf.numbers import TYPES

SHOWN = 3  # lines of what llama.cpp said


def quantise(whole: Path, path: Path, type_: str) -> None:
    """Write ``path``, a file of ``type_``, from the float32 file ``whole``. See ``run`` for what it raises."""
    run({"do": "quantise", "whole": str(whole), "path": str(path), "file_type": TYPES[type_].file_type}, whole.parent)


def run(request: Mapping[str, Any], scratch: Path) -> dict[str, Any]:
    """What llama.cpp answers to ``request`` (peftctl/gguf/child.py). What it is asked and says is left in ``scratch``.

    Raises MachineError where it is not installed, VerificationError with its last words where it does not answer.
    """
    if find_spec("llama_cpp") is None:
        raise MachineError("llama.cpp is not installed", "pip install 'peftctl[gguf]'")
    asked, answer = scratch / "request.json", scratch / "answer.json"
    answer.unlink(missing_ok=True)
    asked.write_text(json.dumps({**request, "answer": str(answer)}), "utf-8")
    command = [sys.executable, "-m", "peftctl.gguf.child", str(asked)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not answer.exists():
        lines = [line for line in done.stderr.splitlines() if line.strip()][-SHOWN:]
        ended = f"exit code {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
        raise VerificationError(f"llama.cpp does not take what was written ({ended}): {' | '.join(lines)}")
    found: dict[str, Any] = json.loads(answer.read_text("utf-8"))
    return found
