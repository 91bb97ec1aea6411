"""What peftctl saves that is no adapter of PEFT's: some of the model's own parameters, a mixture, or a whole model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError
from peftctl.inspection import bounded
from peftctl.inspection.published import published
from peftctl.inspection.values import word

NAME = "peftctl_adapter.json"


@dataclass(frozen=True)
class OwnFacts:
    """``parts``: how many numbers each file of weights holds. ``run``: the run directory that it is in or was exported
    from, "" for none.
    """

    path: str
    run: str
    method: str
    base_name: str | None
    base_revision: str | None
    parameters: int
    dtypes: Mapping[str, int]
    parts: Mapping[str, int]
    size_bytes: int

    @property
    def wrong(self) -> bool:
        return False

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain values."""
        return {"kind": "own", **asdict(self)}


def own_facts(path: Path) -> OwnFacts:
    """What is in the folder ``path``. Raises UsageError where peftctl saved nothing there, or its files are damaged."""
    if NAME not in bounded.names(path):
        raise UsageError(f"{path} holds no {NAME}, so it is nothing that peftctl saved")
    said = bounded.json_object(path / NAME)
    method = word(said.get("method"))
    if not method:
        raise UsageError(f"{path / NAME} names no method, so it does not say what was trained")
    known = published(path)
    return OwnFacts(
        path=str(path),
        run=(known.run or known.exported) if known else "",
        method=method,
        base_name=word(said.get("base")),
        base_revision=word(said.get("revision")),
        **weights(path),
    )


def weights(folder: Path) -> dict[str, Any]:
    """How many numbers the safetensors below ``folder`` hold: in all, by dtype and by file; and their bytes on disk.

    Raises UsageError where one of them is damaged.
    """
    dtypes: Counter[str] = Counter()
    parts: dict[str, int] = {}
    size = 0
    for name in bounded.below(folder):
        if name.endswith(".safetensors"):
            tensors = bounded.header(folder / name).values()
            parts[name] = sum(tensor.parameters for tensor in tensors)
            size += bounded.size_of(folder / name)
            for tensor in tensors:
                dtypes[tensor.dtype] += tensor.parameters
    return {"parameters": sum(parts.values()), "dtypes": dict(dtypes), "parts": parts, "size_bytes": size}
