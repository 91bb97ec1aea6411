"""The merge with the whole model in memory, by PEFT and transformers alone: for what cannot be done layer by layer."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from peftctl.errors import MachineError, UsageError
from peftctl.merge.adapters import Combine, put
from peftctl.merge.source import Source
from peftctl.model import load, prequantized

NEEDED = 1.2  # times its weights
# What PEFT then does is what is wanted, and transformers writes a config that says so.
UNTIED = "Input and output embeddings are no longer tied after merging"


def write(source: Source, dtype: str, combine: Combine, folder: Path, most: int, scratch: Path) -> None:
    """Fill ``folder`` with config.json and the merged weights in ``dtype``, in files of up to ``most`` bytes.

    Raises MachineError where the model does not fit in memory, UsageError where it cannot be merged into.
    """
    import torch

    config = load.load_config(source.base, source.model)
    needed = NEEDED * prequantized.weight_bytes(config, source.base.folder, dtype)
    if needed > (free := available()):
        raise MachineError(
            f"{source.base.name} has to be in memory as a whole to be merged into, which takes {needed / 1e9:.3g} GB; "
            f"{free / 1e9:.3g} GB are free"
        )
    plain = source.model.model_copy(update={"quantization": None})
    model = load.load_model(source.base, plain, source.task, dtype)
    if getattr(model, "is_quantized", False):
        model = _unpacked(model, source)
    peft_model = put(model, source, combine, {}, scratch)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", UNTIED)
        merged = peft_model.merge_and_unload(safe_merge=False)
    merged.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=most)


def available() -> int:
    """Bytes of memory that can be had without taking it from other processes."""
    with open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _unpacked(model: Any, source: Source) -> Any:
    try:
        return model.dequantize()
    except (NotImplementedError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{source.base.name} is quantised as it comes, and its weights cannot be unpacked: {error}",
            "name the same model's weights from before they were quantised with --base and --force-base",
        ) from error
