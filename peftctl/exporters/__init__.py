"""The forms in which a run's result leaves. To add one: a file here and a line in the table."""

from __future__ import annotations

from peftctl.exporters import adapter, gguf, gguf_lora, merged, ollama, onnx, vllm
from peftctl.exporters.contract import Exporter

MEMBERS: tuple[Exporter, ...] = (
    adapter.EXPORTER, merged.EXPORTER, gguf.EXPORTER, gguf_lora.EXPORTER, ollama.EXPORTER, vllm.EXPORTER, onnx.EXPORTER,
)  # fmt: skip
EXPORTERS: dict[str, Exporter] = {exporter.name: exporter for exporter in MEMBERS}

__all__ = ["EXPORTERS", "Exporter"]
