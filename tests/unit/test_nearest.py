"""The nearest known word."""

from __future__ import annotations

import pytest

from peftctl.nearest import distance, nearest


@pytest.mark.parametrize(
    ("a", "b", "edits"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("abc", "", 3),
        ("rank", "rank", 0),
        ("rnk", "rank", 1),
        ("rankk", "rank", 1),
        ("rank", "bank", 1),
        ("rakn", "rank", 1),
        ("epohcs", "epochs", 1),
        ("kitten", "sitting", 3),
        ("ca", "abc", 3),  # by optimal string alignment; unrestricted Damerau-Levenshtein says 2
    ],
)
def test_distance_counts_the_fewest_edits(a: str, b: str, edits: int) -> None:
    assert distance(a, b) == edits
    assert distance(b, a) == edits


@pytest.mark.parametrize(
    ("word", "known", "found"),
    [
        ("epoch", ["epochs", "max_steps"], "epochs"),
        ("trian", ["train", "task", "data"], "train"),
        ("LORA", ["lora", "dora"], "lora"),
        ("max-steps", ["max_steps", "steps"], "max_steps"),
        ("learning_rte", ["learning_rate", "log_every"], "learning_rate"),
        ("checkpointing", ["batch_size", "gradient_checkpointing"], "gradient_checkpointing"),
        ("xyz", ["train", "task"], ""),
        ("lr", ["rank", "learning_rate"], "learning_rate"),  # its initials
        ("bf16", ["auto", "bfloat16", "float32"], "bfloat16"),  # its letters, in order
        ("acc", ["accuracy_of_all", "accuracy", "loss"], "accuracy"),
        ("fb16", ["auto", "bfloat16"], ""),
        ("l", ["learning_rate"], ""),
        ("anything", [], ""),
        ("", ["train"], ""),
    ],
)
def test_the_word_meant_is_found_and_none_where_none_is_near(word: str, known: list[str], found: str) -> None:
    assert nearest(word, known) == found


def test_the_word_of_fewest_edits_wins_over_an_earlier_one() -> None:
    assert nearest("adamw8bit", ["adamw", "adamw_8bit"]) == "adamw_8bit"


def test_the_first_of_equally_near_words_is_taken() -> None:
    assert nearest("cat", ["bat", "rat"]) == "bat"
    assert nearest("cat", ["rat", "bat"]) == "rat"


def test_a_very_long_word_is_quickly_answered() -> None:
    assert nearest("x" * 1_000_000, ["train", "data"]) == ""
