"""The adapter by itself as a GGUF file, for programs that have the base already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from peftctl.card import title
from peftctl.exporters import gguf_adapter, gguf_whole
from peftctl.exporters.contract import Job
from peftctl.gguf import convert
from peftctl.run import Run

ADAPTER = "adapter.gguf"
WORDS = """# {name}

The adapter alone as a GGUF file, to be loaded onto a GGUF file of its base. `manifest.json` says whether, and how, the
two were compared in llama.cpp.

```bash
llama-cli -m base.gguf --lora adapter.gguf
```
"""


@dataclass(frozen=True)
class GgufLora:
    name: str = "gguf-lora"
    summary: str = "a LoRA adapter alone as a GGUF file, for llama.cpp's --lora"
    types: tuple[str, ...] = ("f32", "f16")
    opens_base: bool = True
    checked_with: Mapping[str, str] = field(default_factory=lambda: {"llama_cpp": "gguf"})
    written_with: Mapping[str, str] = field(default_factory=dict)

    def check(self, run: Run, type_: str) -> None:
        gguf_adapter.check(run)

    def write(self, job: Job) -> convert.Source:
        base = gguf_adapter.write(job, job.folder / ADAPTER, job.type)
        gguf_whole.card(job, WORDS.format(name=title(job.run)))
        return base

    def verify(self, job: Job, written: convert.Source) -> Mapping[str, Any]:
        job.note("writing the base as a GGUF file, to load the adapter onto")
        whole = job.scratch / "base.gguf"
        convert.convert(written, whole, "f32", lambda _: None)
        # The matrices' own rounding has little weight beside the base's, which has none here.
        rounded = "f16" if job.type == "f16" else "f32"
        file = gguf_adapter.file(written, whole, rounded, job.folder / ADAPTER)
        return gguf_adapter.verify(job, written, file)


EXPORTER = GgufLora()
