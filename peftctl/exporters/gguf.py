"""The whole model as one GGUF file, for llama.cpp and what is built on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftctl.card import title
from peftctl.exporters import gguf_whole
from peftctl.exporters.contract import Job
from peftctl.gguf.numbers import TYPES
from peftctl.run import Run

MODEL = "model.gguf"
WORDS = """# {name}

One GGUF file of {type} numbers: the base with what was trained merged into it, its tokenizer, and the chat template of
training. `manifest.json` says whether, and how, it was compared in llama.cpp.

```bash
llama-cli -m model.gguf
```
"""


@dataclass(frozen=True)
class Gguf:
    name: str = "gguf"
    summary: str = "the whole model as one GGUF file, for llama.cpp and what is built on it"
    types: tuple[str, ...] = tuple(TYPES)
    opens_base: bool = True
    checked_with: Mapping[str, str] = field(default_factory=lambda: {"llama_cpp": "gguf"})
    written_with: Mapping[str, str] = field(default_factory=dict)

    def check(self, run: Run, type_: str) -> None:
        gguf_whole.check(run)

    def write(self, job: Job) -> gguf_whole.Written:
        written = gguf_whole.write(job, job.folder / MODEL)
        gguf_whole.card(job, WORDS.format(name=title(job.run), type=job.type), written.kinds)
        return written

    def verify(self, job: Job, written: gguf_whole.Written) -> Mapping[str, Any]:
        return gguf_whole.verify(job, written, job.folder / MODEL)


EXPORTER = Gguf()
