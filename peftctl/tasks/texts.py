"""Texts that were written against those that should have been, and how well their tokens were foreseen."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

Pairs = Sequence[tuple[str, str]]


def of_tokens(sums: Mapping[str, float]) -> dict[str, float]:
    """From sums over tokens of the ``loss``, of those that were the likeliest (``right``) and of their weight."""
    loss = sums["loss"] / sums["count"]
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "token_accuracy": sums["right"] / sums["count"],
    }


def exact_match(pairs: Pairs) -> float:
    """The share of texts that are right to the letter, but for white space around them."""
    return sum(written.strip() == right.strip() for written, right in pairs) / len(pairs)


def overlaps(pairs: Pairs) -> dict[str, float]:
    """BLEU and chrF of the whole, 0 to 100, as sacrebleu has them (Post 2018); mean ROUGE-1, ROUGE-2 and ROUGE-L F1,
    0 to 1 (Lin 2004), over lower-case words of letters and digits, without stemming."""
    from sacrebleu.metrics import BLEU, CHRF

    written, right = [pair[0] for pair in pairs], [[pair[1] for pair in pairs]]
    words = [(_words(one), _words(other)) for one, other in pairs]
    return {
        "bleu": BLEU().corpus_score(written, right).score,
        "chrf": CHRF().corpus_score(written, right).score,
        "rouge1": sum(_of_grams(one, other, 1) for one, other in words) / len(pairs),
        "rouge2": sum(_of_grams(one, other, 2) for one, other in words) / len(pairs),
        "rougeL": sum(_longest(one, other) for one, other in words) / len(pairs),
    }


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isascii() and letter.isalnum() else " " for letter in text.lower()).split()


def _of_grams(written: Sequence[str], right: Sequence[str], size: int) -> float:
    one, other = (
        Counter(tuple(words[at : at + size]) for at in range(len(words) - size + 1)) for words in (written, right)
    )
    return _f1((one & other).total(), one.total(), other.total())


def _longest(written: Sequence[Hashable], right: Sequence[Hashable]) -> float:
    """F1 by the longest common subsequence."""
    lengths = [0] * (len(right) + 1)
    for word in written:
        before = 0
        for at, other in enumerate(right, start=1):
            before, lengths[at] = lengths[at], before + 1 if word == other else max(lengths[at], lengths[at - 1])
    return _f1(lengths[-1], len(written), len(right))


def _f1(both: int, one: int, other: int) -> float:
    return 2 * both / (one + other) if both else 0.0
