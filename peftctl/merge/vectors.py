"""What sentence-transformers' files say of a base: how its vectors are made of tokens'. They go with a merged model
where that is how it was trained, and with nothing else.

The files: modules.json names folders, one a module, each with a config.json.
https://sbert.net/docs/sentence_transformer/usage/custom_models.html
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

MODULES = "modules.json"
FILES = (MODULES, "sentence_bert_config.json", "config_sentence_transformers.json")
# Its words for ways to pool, with the task's.
MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "last"}


def copy(base: Path, folder: Path, pooling: str) -> None:
    """Bring them into ``folder`` where they describe vectors of this ``pooling``; "" is a model that makes none."""
    if not pooling or not (base / MODULES).exists():
        return
    try:
        modules = [(each["type"], each["path"]) for each in json.loads((base / MODULES).read_text("utf-8"))]
        if any(Path(path).name != path for _, path in modules if path):
            return  # they lead elsewhere
        modes = [_mode(json.loads((base / path / "config.json").read_text("utf-8")))
                 for kind, path in modules if _pools(kind)]  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return  # they describe nothing
    if modes != [pooling]:
        return
    for name in FILES:
        if (base / name).exists():
            shutil.copyfile(base / name, folder / name)
    for _, path in modules:
        if path:
            (folder / path).mkdir(exist_ok=True)
            for file in (base / path).glob("*.json"):
                shutil.copyfile(file, folder / path / file.name)


def _pools(kind: str) -> bool:
    return kind.rpartition(".")[2] == "Pooling"


def _mode(said: Any) -> str:
    """How a module pools, in the task's word."""
    modes = [word for key, word in MODES.items() if said.get(key)]
    return modes[0] if len(modes) == 1 else str(said.get("pooling_mode", ""))
