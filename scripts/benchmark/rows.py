"""Chats to measure with: what numpy's own documentation says of its functions. Real text, mixed lengths, no download.

numpy's docstrings are BSD-3-Clause; they are read from the installed package, whose version constraints.txt pins.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODULES = (
    "numpy", "numpy.linalg", "numpy.fft", "numpy.random", "numpy.ma", "numpy.strings", "numpy.char", "numpy.testing",
    "numpy.lib.stride_tricks", "numpy.polynomial.polynomial", "numpy.polynomial.chebyshev", "numpy.polynomial.legendre",
    "numpy.polynomial.hermite", "numpy.polynomial.hermite_e", "numpy.polynomial.laguerre",
)  # fmt: skip
SHORTEST, LONGEST = 120, 3500  # letters


def documented() -> Iterator[tuple[str, str]]:
    """Every public function of ``MODULES`` with its docstring, each text once."""
    seen = set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name in sorted(vars(module)):
            value = getattr(module, name)
            text = inspect.cleandoc(getattr(value, "__doc__", None) or "") if callable(value) else ""
            if name.startswith("_") or text in seen or not SHORTEST <= len(text) <= LONGEST:
                continue
            seen.add(text)
            yield f"{module_name}.{name}", text


def chats() -> list[dict[str, Any]]:
    """The rows in an order that depends on their names alone."""
    rows = sorted(documented(), key=lambda row: hashlib.sha256(row[0].encode()).digest())
    return [
        {
            "messages": [
                {"role": "user", "content": f"What does {name} do?"},
                {"role": "assistant", "content": text},
            ]
        }
        for name, text in rows
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
