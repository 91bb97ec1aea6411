"""Make recipes/data/sentiment-train.jsonl.gz and sentiment-eval.jsonl.gz: sentences and how people rated them.

The sentences, from reviews of products and newspaper editorials, come with the source archive of vaderSentiment. A
document is in one of the two files only. recipes/data/README.md says how the rows are made, and why git ignores them.

    python scripts/data_sentiment.py
"""

from __future__ import annotations

import io
import re
import tarfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from packages import from_pip, order, write

PACKAGE = "vaderSentiment==3.3.2"
PACKAGE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SOURCES = {"review": "amazonReviewSnippets_GroundTruth.txt", "editorial": "nytEditorialSnippets_GroundTruth.txt"}

NEUTRAL = 0.5  # the mean rating, from -4 to 4, up to which a sentence is neither positive nor negative
FEWEST_WORDS = 3
SHARED_WORDS = 6  # documents that share a sentence at least this long are one document
EVAL_ROWS = 1000


@dataclass(frozen=True)
class Sentence:
    document: str  # "review/70"
    number: int
    rating: float
    text: str

    @property
    def id(self) -> str:
        return f"{self.document}/{self.number}"

    @property
    def label(self) -> str:
        return "positive" if self.rating > NEUTRAL else "negative" if self.rating < -NEUTRAL else "neutral"

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(re.findall(r"[a-z0-9']+", self.text.lower()))


def main() -> None:
    kept = list(distinct(list(sentences())))
    documents = joined(kept)
    sizes = Counter(documents[each.document] for each in kept)
    held_out: set[str] = set()
    for document in sorted(sizes, key=order):
        if sum(sizes[each] for each in held_out) < EVAL_ROWS:
            held_out.add(document)
    shuffled = sorted(kept, key=lambda each: order(each.id))
    for name, evaluated in (("train", False), ("eval", True)):
        rows = [each for each in shuffled if (documents[each.document] in held_out) == evaluated]
        write(f"sentiment-{name}", [{"text": each.text, "label": each.label, "id": each.id} for each in rows])
        print("   ", dict(Counter(f"{each.document.split('/')[0]} {each.label}" for each in rows)))


def sentences() -> Iterator[Sentence]:
    """All sentences with at least ``FEWEST_WORDS`` words."""
    with tarfile.open(from_pip(PACKAGE, PACKAGE_SHA256, source=True)) as outer:
        inner = outer.extractfile(INNER)
        assert inner
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as archive:
            for kind, name in SOURCES.items():
                file = archive.extractfile(f"hutto_ICWSM_2014/{name}")
                assert file
                for line in file.read().decode("ascii").splitlines():
                    number, rating, text = line.split("\t", 2)
                    document, _, place = number.partition("_")
                    sentence = Sentence(f"{kind}/{document}", int(place), float(rating), " ".join(text.split()))
                    if len(sentence.words) >= FEWEST_WORDS:
                        yield sentence


def joined(kept: list[Sentence]) -> dict[str, str]:
    """For each document the first one of all that share long sentences with it, through others too."""
    first = {each.document: each.document for each in kept}

    def root(document: str) -> str:
        while first[document] != document:
            document = first[document]
        return document

    holders: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for each in sentences():
        if len(each.words) >= SHARED_WORDS and each.document in first:
            holders[each.words].append(each.document)
    for documents in holders.values():
        for other in documents[1:]:
            one, two = sorted((root(documents[0]), root(other)))
            first[two] = one
    return {document: root(document) for document in first}


def distinct(every: list[Sentence]) -> Iterator[Sentence]:
    """Each text once; none where people rated it with other labels elsewhere."""
    labels: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for each in every:
        labels[each.words].add(each.label)
    seen: set[tuple[str, ...]] = set()
    for each in every:
        if len(labels[each.words]) == 1 and each.words not in seen:
            seen.add(each.words)
            yield each


if __name__ == "__main__":
    main()
