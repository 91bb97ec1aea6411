"""The forms in which a run's result leaves. To add one: a file here and a line in the table."""

from __future__ import annotations

from peftctl.exporters import adapter, merged, vllm
from peftctl.exporters.contract import Exporter

EXPORTERS: dict[str, Exporter] = {
    exporter.name: exporter for exporter in (adapter.EXPORTER, merged.EXPORTER, vllm.EXPORTER)
}

__all__ = ["EXPORTERS", "Exporter"]
