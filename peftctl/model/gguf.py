"""A GGUF base as a plain folder: plain peft, merge and export all need one.

Converted once, dequantised to float32 (which holds every dequantised value exactly), and kept in the user's cache
under the hash of the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peftctl.atomic import lock, publish_directory, sha256, write_json
from peftctl.cache import cache_home
from peftctl.errors import UsageError, VerificationError
from peftctl.model.gguf_whole import check_whole

# What transformers writes into a tokenizer's config only because it was loaded from a GGUF file.
STRAY_KEYS = ("is_local", "local_files_only", "gguf_file")


def plain_folder(path: Path, note: Callable[[str], None]) -> Path:
    """The folder converted from the GGUF file ``path``; it is made if the cache has none.

    Raises UsageError where the file is no GGUF, not whole, or of an architecture transformers cannot read.
    """
    digest = sha256(path)
    home = cache_home() / "gguf"
    home.mkdir(exist_ok=True)
    folder = home / digest[:32]
    if folder.exists():
        return folder
    with lock(home / f"{digest[:32]}.lock", f"{path} is being converted by another process", wait=True):
        if not folder.exists():
            note(f"converting {path.name} to a plain folder, once: {folder}")
            _convert(path, digest, folder)
    return folder


def _convert(path: Path, digest: str, folder: Path) -> None:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise UsageError(f"model.name: {path} is not a GGUF file (it does not begin with GGUF)")
    check_whole(path)
    model, tokenizer = _read(path)
    with publish_directory(folder) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        _drop_stray_keys(aside / "tokenizer_config.json")
        _check(model, aside)
        write_json(aside / "source.json", {"file": path.name, "sha256": digest, "dtype": "float32"})


def _read(path: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=torch.float32,
            # Without this transformers keeps a quantizer on the model, and saving it is refused.
            quantization_config=GgufConfig(dequantize=True),
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    except MemoryError:
        raise
    except Exception as error:  # the reader checks little: a damaged file ends in whatever it stumbles over
        raise UsageError(f"model.name: {path} cannot be read as a GGUF model: {error}") from error
    return model, tokenizer


def _drop_stray_keys(path: Path) -> None:
    config = json.loads(path.read_text("utf-8"))
    write_json(path, {key: value for key, value in config.items() if key not in STRAY_KEYS})


def _check(model: Any, folder: Path) -> None:
    """What was written holds the model's weights, bit for bit."""
    import torch
    from safetensors import safe_open

    state = model.state_dict()
    seen = set()
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is not a mapping
                seen.add(name)
                if not torch.equal(tensors.get_tensor(name), state[name]):
                    raise VerificationError(f"{file.name}: {name} differs from the GGUF file it was made from")
    pointers = {state[name].data_ptr() for name in seen}
    lost = sorted(name for name in state if name not in seen and state[name].data_ptr() not in pointers)
    if lost:
        raise VerificationError(f"converting lost {', '.join(lost[:5])}")
