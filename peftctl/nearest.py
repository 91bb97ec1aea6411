"""The known word nearest to one that is not known, by edit distance."""

from __future__ import annotations

from collections.abc import Collection


def distance(a: str, b: str) -> int:
    """Edits from ``a`` to ``b``: insert, delete, replace or swap two neighbours (optimal string alignment)."""
    before: list[int] = []
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        current = [i]
        for j, y in enumerate(b, start=1):
            best = min(previous[j] + 1, current[j - 1] + 1, previous[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                best = min(best, before[j - 2] + 1)
            current.append(best)
        before, previous = previous, current
    return previous[-1]


def nearest(word: str, known: Collection[str]) -> str:
    """The known word fewest edits away, or "" where none is near enough to be meant.

    Near enough is a third of the longer word's letters, or one word holding the other whole.
    """
    found = word.lower().replace("-", "_")[:64]
    best, best_distance = "", 10**6
    for candidate in known:
        other = candidate.lower().replace("-", "_")
        edits = distance(found, other)
        held = min(len(found), len(other)) >= 3 and (found in other or other in found)
        if (held or edits <= max(1, max(len(found), len(other)) // 3)) and edits < best_distance:
            best, best_distance = candidate, edits
    return best or _abbreviated(word, known)


def _abbreviated(word: str, known: Collection[str]) -> str:
    """The known word whose initials ``word`` is (lr), or the shortest that has its letters in order (bf16)."""
    if len(word) < 2:
        return ""
    for candidate in known:
        if "".join(part[:1] for part in candidate.split("_")) == word:
            return candidate
    return min((each for each in known if each[:1] == word[:1] and _holds(each, word)), key=len, default="")


def _holds(text: str, letters: str) -> bool:
    rest = iter(text)
    return all(letter in rest for letter in letters)
