"""A model's architecture found out by a process of its own, which imports less, in parallel, and cannot run wild."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from peftctl.errors import MachineError, PeftctlError, UsageError
from peftctl.inspection import child

# What is in a folder that holds no model, or not only one.
OTHERS = ("adapter_config.json", "peftctl_adapter.json", "resolved.yaml")
KINDS: dict[str, type[PeftctlError]] = {"UsageError": UsageError, "MachineError": MachineError}


@dataclass(frozen=True)
class Question:
    """A config's ``settings``, or the folder of one GGUF file without weights and the rows of its embedding.

    ``stored``: names and shapes of the tensors that are there, to be held against the model's.
    """

    settings: Mapping[str, Any] | None = None
    gguf: Path | None = None
    vocabulary: int = 0
    tree: bool = False
    pattern: str | None = None
    by_peft: bool = False
    stored: Mapping[str, Sequence[int]] | None = None

    def as_json(self) -> str:
        gguf = str(self.gguf) if self.gguf else None
        return json.dumps({**vars(self), "settings": self.settings and dict(self.settings), "gguf": gguf})


class Apart:
    """The process, importing from now on; it ends with the ``with`` block."""

    def __init__(self) -> None:
        self._process = _start("lean")

    def __enter__(self) -> Apart:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, question: Question) -> dict[str, Any]:
        """The architecture's facts. Raises UsageError where transformers cannot build it, or not in reasonable
        time, and MachineError where it needs a package for that, or where the process is ended from outside."""
        if question.by_peft:
            self._end()
            self._process = _start()
        answered, why_not = _answer(self._process, question)
        if answered is None:  # what was left out may have been needed
            self._process = _start()
            answered, why_not = _answer(self._process, question)
        if answered is None:
            raise RuntimeError(f"the process that builds the model failed: {why_not}")
        if "refused" in answered:
            kind, message, hint = answered["refused"]
            raise KINDS[kind](message, hint)
        facts: dict[str, Any] = answered["architecture"]
        return facts


def plausible(name: str) -> bool:
    """Whether ``name`` may well be a model: asked before there is time to import what can tell."""
    return not any(os.path.exists(os.path.join(name, file)) for file in OTHERS)


def _start(*arguments: str) -> subprocess.Popen[str]:
    # -P: what stands in the working directory must not be imported.
    command = [sys.executable, "-P", "-m", "peftctl.inspection.child", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, encoding="utf-8")


def _answer(process: subprocess.Popen[str], question: Question) -> tuple[dict[str, Any] | None, str]:
    """What the process answers, or None and the end of what it has to say of that."""
    answer, noise = process.communicate(question.as_json())
    if process.returncode == -signal.SIGXCPU:
        most = child.SECONDS_BY_PEFT if question.by_peft else child.SECONDS
        raise UsageError(f"the model of this config takes more than {most} seconds to build")
    if process.returncode < 0:
        word = signal.Signals(-process.returncode).name
        raise MachineError(f"the process that builds the model was ended from outside ({word}); is memory short?")
    if process.returncode:
        return None, noise.strip()[-2000:]
    answered: dict[str, Any] = json.loads(answer)
    return answered, ""
