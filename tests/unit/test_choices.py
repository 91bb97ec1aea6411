"""Scores by choice: figures against scikit-learn, log-probabilities against a forward pass of each row alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score

from peftctl.data.collate import Collator
from peftctl.data.sources import Sourced
from peftctl.errors import DataError, Place
from peftctl.evaluation import choices
from peftctl.example import Conversation, Pair, Segment, Segments
from peftctl.tasks import TASKS, Layout
from tests import tiny
from tests.unit import kinds
from tests.unit.kinds import assistant, system, user

NAMES = ("a", "b", "c", "d")


def compared(guesses: list[int], answers: list[int], names: tuple[str, ...]) -> None:
    made = choices.report(guesses, answers, names)
    labels = list(range(len(names)))
    each = f1_score(answers, guesses, labels=labels, average=None, zero_division=0.0)
    macro = f1_score(answers, guesses, labels=labels, average="macro", zero_division=0.0)
    assert made["rows"] == len(answers)
    assert made["accuracy"] == pytest.approx(accuracy_score(answers, guesses), abs=1e-15)
    assert made["macro_f1"] == pytest.approx(macro, abs=1e-15)
    assert list(made["f1"]) == list(names)
    assert list(made["f1"].values()) == pytest.approx(list(each), abs=1e-15)


@pytest.mark.parametrize("seed", range(20))
def test_a_report_has_scikit_learn_s_figures(seed: int) -> None:
    random = np.random.default_rng(seed)
    count, rows = int(random.integers(2, 5)), int(random.integers(1, 60))
    guesses, answers = random.integers(0, count, rows), random.integers(0, count, rows)
    compared(guesses.tolist(), answers.tolist(), NAMES[:count])


@pytest.mark.parametrize(
    ("guesses", "answers"),
    [
        ([0, 1, 0], [0, 1, 0]),  # all right
        ([1, 0, 1], [0, 1, 0]),  # all wrong
        ([0, 0, 0], [0, 1, 1]),  # always one
        ([0, 0, 0], [0, 0, 0]),  # the second neither guessed nor asked for
        ([1], [0]),
    ],
)
def test_a_report_has_scikit_learn_s_figures_at_the_edges(guesses: list[int], answers: list[int]) -> None:
    compared(guesses, answers, NAMES[:2])


def test_a_choice_never_guessed_nor_right_counts_as_zero() -> None:
    made = choices.report([0, 1], [0, 1], NAMES[:3])
    assert made["f1"] == {"a": 1.0, "b": 1.0, "c": 0.0}
    assert made["macro_f1"] == pytest.approx(2 / 3)
    assert made["accuracy"] == 1.0


def test_the_likeliest_choice_is_guessed_and_the_first_of_equals() -> None:
    scores = np.array([[-1.0, -2.0], [-3.0, -0.5], [-1.0, -1.0]])
    made = choices.classify(scores, [0, 0, 0], NAMES[:2])
    assert made["accuracy"] == pytest.approx(2 / 3)
    assert choices.classify(scores, [0, 1, 0], NAMES[:2])["accuracy"] == 1.0


def test_the_majority_is_always_the_commonest_answer() -> None:
    made = choices.majority([1, 1, 0, 1], NAMES[:3])
    assert made["accuracy"] == 0.75
    assert made["f1"] == {"a": 0.0, "b": pytest.approx(2 * 3 / 7), "c": 0.0}
    assert choices.majority([2], NAMES)["accuracy"] == 1.0


def collator(*, slices: bool = True, tokens: int = 500) -> Collator:
    return Collator(TASKS["causal_lm"], tiny.tokenizer(), Layout(0, slices), tokens, torch.device("cpu"))


def sourced(*examples: Conversation | Segments) -> list[Sourced]:
    return [Sourced(Place("rows", line), example) for line, example in enumerate(examples, start=1)]


CHATS = sourced(
    kinds.chat(user("is 3 odd?"), assistant("yes")),
    kinds.chat(system("answer"), user("is 44 odd? Think of it well."), assistant("no")),
    kinds.chat(user("1?"), assistant("no"), user("2?"), assistant("perhaps")),
)
CHOICES = ("yes", "no", "perhaps")


def test_each_row_is_asked_with_each_choice_and_only_that_is_learned() -> None:
    asked = choices.questions(CHATS, CHOICES, collator(), 500)
    assert [question.answer for question in asked] == [0, 1, 2]
    for question in asked:
        assert len(question.variants) == 3
        for choice, variant in zip(CHOICES, question.variants, strict=True):
            assert kinds.learned_texts(variant, tiny.tokenizer()) == [f"{choice}<|im_end|>"]


def test_the_right_variant_is_what_training_encodes() -> None:
    question = choices.questions(CHATS[:1], CHOICES, collator(), 500)[0]
    assert [question.variants[question.answer]] == TASKS["causal_lm"].encode([CHATS[0].example], tiny.tokenizer())[0]


def test_plain_text_is_asked_with_its_last_piece_replaced() -> None:
    rows = sourced(Segments((Segment("is it? "), Segment("no", 1.0))))
    [question] = choices.questions(rows, CHOICES, collator(), 500)
    texts = [tiny.tokenizer().decode(list(variant.ids)) for variant in question.variants]
    assert texts == ["is it? yes<|im_end|>", "is it? no<|im_end|>", "is it? perhaps<|im_end|>"]


def test_a_pair_is_asked_nothing_and_named() -> None:
    with pytest.raises(DataError, match=r"^rows:1: a Pair has no answer, as eval\.choices needs$"):
        choices.questions([Sourced(Place("rows", 1), Pair("a", "b"))], CHOICES, collator(), 500)


def test_a_template_that_rewrites_history_is_asked_for_the_last_turn() -> None:
    """It gives a row for every answer; only the last one is asked for."""
    chat = kinds.chat(user("1?"), assistant("<think>x</think>no"), user("2?"), assistant("perhaps"))
    forgetful = Collator(TASKS["causal_lm"], tiny.tokenizer(kinds.FORGETFUL), Layout(0), 500, torch.device("cpu"))
    (question,) = choices.questions(sourced(chat), CHOICES, forgetful, 500)
    assert question.answer == 2
    for choice, variant in zip(CHOICES, question.variants, strict=True):
        assert kinds.learned_texts(variant, tiny.tokenizer()) == [f"{choice}<|im_end|>"]


def test_a_row_that_ends_with_no_choice_is_named() -> None:
    rows = [*CHATS, *sourced(kinds.chat(user("q"), assistant("Yes")))]
    with pytest.raises(DataError) as error:
        choices.questions(rows, CHOICES, collator(), 500)
    assert error.value.message == "rows:1: ends with 'Yes', which is none of eval.choices (yes, no, perhaps)"


def test_a_row_too_long_with_any_choice_is_left_out_and_all_too_long_is_an_error() -> None:
    encoded = TASKS["causal_lm"].encode([row.example for row in CHATS], tiny.tokenizer())
    lengths = [len(row) for rows in encoded if isinstance(rows, list) for row in rows]
    assert lengths[0] < lengths[2] < lengths[1]
    longest = lengths[0] - len("yes") + len("perhaps")
    assert [q.answer for q in choices.questions(CHATS, CHOICES, collator(), longest)] == [0]
    with pytest.raises(DataError, match="no held-out row is short enough to be scored"):
        choices.questions(CHATS, CHOICES, collator(), longest - 1)


@pytest.mark.parametrize("tokens", [0, 64, 100_000])
@pytest.mark.parametrize("slices", [True, False])
def test_scores_are_the_log_probabilities_of_each_row_alone(tokens: int, slices: bool) -> None:
    model = tiny.llama().eval()
    asked = choices.questions(CHATS, CHOICES, collator(slices=slices), 500)
    scores = choices.score(model, asked, collator(slices=slices, tokens=tokens))
    assert scores.shape == (3, 3)
    for row, question in enumerate(asked):
        for column, variant in enumerate(question.variants):
            with torch.no_grad():
                logits = model(torch.tensor([variant.ids])).logits[0].double()
            logp = logits - logits.exp().sum(-1, keepdim=True).log()
            wanted = sum(float(logp[at - 1, variant.ids[at]]) for at in range(1, len(variant)) if variant.weights[at])
            # Sums of at most ten float32 log-probabilities of size about ten.
            assert scores[row, column] == pytest.approx(wanted, rel=1e-5)


def test_scoring_leaves_the_model_as_it_was() -> None:
    model: Any = tiny.llama()
    for training in (True, False):
        model.train(training)
        choices.score(model, choices.questions(CHATS[:1], CHOICES, collator(), 500), collator())
        assert model.training is training
