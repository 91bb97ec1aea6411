"""Make recipes/data/numpy-train.jsonl.gz and numpy-eval.jsonl.gz from numpy's own documentation.

Each row asks what a function does and answers with its docstring, as the installed numpy, whose version
constraints.txt pins, has it. Functions that are methods of the same name in other modules with the same text are
there once. It writes the same bytes each time.

    python scripts/data_numpy.py
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent
sys.path.insert(0, str(SCRIPTS / "benchmark"))

from rows import chats

FOLDER = SCRIPTS.parent / "recipes" / "data"
EVAL_ROWS = 60


def main() -> None:
    rows = chats()
    write(FOLDER / "numpy-train.jsonl.gz", rows[:-EVAL_ROWS])
    write(FOLDER / "numpy-eval.jsonl.gz", rows[-EVAL_ROWS:])


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    print(f"{path.name}: {len(rows)} rows, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
