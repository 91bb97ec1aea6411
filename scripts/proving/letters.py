"""How a word sounds by what its letters sounded like in others: no network, and what one has to beat."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

Sounds = tuple[str, ...]
MOST = 2  # sounds of one letter
ROUNDS = 4
AROUND = 4  # letters on either side


class Letters:
    """Learns from words and their sounds which letter stands for which (each for none, one or two, chosen so that all
    words together are likeliest), then takes for each letter what was commonest among the same neighbours: as many
    of them as were seen in training."""

    def __init__(self, words: Sequence[tuple[str, Sequence[str]]]) -> None:
        cost: dict[tuple[str, Sounds], float] = {}
        for _ in range(ROUNDS):
            counts: Counter[tuple[str, Sounds]] = Counter()
            for word, sounds in words:
                counts.update(zip(word, aligned(word, sounds, cost), strict=True))
            letters = Counter(letter for (letter, _), count in counts.items() for _ in range(count))
            cost = {key: -math.log(count / letters[key[0]]) for key, count in counts.items()}
        self.seen: defaultdict[str, Counter[Sounds]] = defaultdict(Counter)
        for word, sounds in words:
            for at, heard in enumerate(aligned(word, sounds, cost)):
                for size in range(AROUND + 1):
                    self.seen[around(word, at, size)][heard] += 1

    def __call__(self, word: str, most: int = AROUND) -> str:
        """The sounds, with a space between, by at most ``most`` letters on either side."""
        found: list[str] = []
        for at in range(len(word)):
            tries = (self.seen.get(around(word, at, size)) for size in range(most, -1, -1))
            found += next((heard.most_common(1)[0][0] for heard in tries if heard), ())
        return " ".join(found)


def around(word: str, at: int, size: int) -> str:
    """The letter with ``size`` others on either side, "-" beyond the word."""
    padded = "-" * size + word + "-" * size
    return padded[at : at + 2 * size + 1]


def aligned(word: str, sounds: Sequence[str], cost: dict[tuple[str, Sounds], float]) -> list[Sounds]:
    """The sounds of each letter, cheapest together; with no costs yet, spread evenly."""
    best: dict[int, tuple[float, list[Sounds]]] = {0: (0.0, [])}
    for at, letter in enumerate(word, 1):
        reached: dict[int, tuple[float, list[Sounds]]] = {}
        for done, (paid, path) in best.items():
            for size in range(MOST + 1):
                heard = tuple(sounds[done : done + size])
                if len(heard) < size:
                    break
                even = abs((done + size) / len(sounds) - at / len(word))
                total = paid + (cost.get((letter, heard), 20.0) if cost else even + 0.1 * (size != 1))
                if done + size not in reached or total < reached[done + size][0]:
                    reached[done + size] = total, [*path, heard]
        best = reached
    if len(sounds) not in best:  # more sounds than its letters can have, such as an abbreviation's
        return [(), *[()] * (len(word) - 2), tuple(sounds)]
    return best[len(sounds)][1]
