"""Ollama's Modelfile: written, and read back. https://github.com/ollama/ollama/blob/main/docs/modelfile.md"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from peftctl.errors import UsageError

INSTRUCTION = re.compile(r'^(FROM|ADAPTER|TEMPLATE|PARAMETER)\s+(?:"""(.*?)"""|(.*?))$', re.S | re.M)


@dataclass(frozen=True)
class Modelfile:
    """``parameters`` in order: each a name and its value."""

    model: str
    template: str
    parameters: Sequence[tuple[str, str]]
    adapter: str = ""

    def text(self) -> str:
        lines = [f"FROM {self.model}"]
        lines += [f"ADAPTER {self.adapter}"] if self.adapter else []
        lines += [f'TEMPLATE """{self.template}"""'] if self.template else []
        return "\n".join([*lines, *(f"PARAMETER {name} {_quoted(value)}" for name, value in self.parameters)]) + "\n"


def read(text: str) -> Modelfile:
    """What a Modelfile says. Raises UsageError where it names no model."""
    said: dict[str, str] = {}
    parameters = []
    for word, block, line in INSTRUCTION.findall(text):
        if word == "PARAMETER":
            name, _, value = line.partition(" ")
            parameters.append((name, _plain(value)))
        else:
            said[word] = block or line
    if "FROM" not in said:
        raise UsageError("Modelfile: names no model (FROM)")
    return Modelfile(said["FROM"], said.get("TEMPLATE", ""), tuple(parameters), said.get("ADAPTER", ""))


def _quoted(value: str) -> str:
    """A value that is a text stands in quotes, in which a line's end is written as \\n."""
    if re.fullmatch(r"-?[\d.]+", value):
        return value
    for sign, written in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        value = value.replace(sign, written)
    return f'"{value}"'


def _plain(written: str) -> str:
    if not written.startswith('"'):
        return written
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], written[1:-1])
