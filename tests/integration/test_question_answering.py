"""Question answering: spans, windows over long texts, questions without an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import peftctl
from peftctl.errors import DataError, UsageError
from peftctl.example import Span
from peftctl.tasks.question_answering import TASK
from peftctl.text.tokens import Encoded
from tests import jobs, tiny
from tests.integration.test_tasks import LEARNS, QUICK, WORDS, texts

FILLING = ("very", "old", "a", "the")
NAME = {"name": "question_answering"}


def questions(count: int = 96, *, answered: bool = True, filling: int = 0) -> list[dict[str, Any]]:
    """Which colour a text has; every fifth, if not all are ``answered``, asks for one that is not there."""
    rows = []
    for number, (text, colour, animal) in enumerate(texts(count)):
        context = " ".join([*(FILLING[(number + at) % 4] for at in range(filling)), text])
        none = not answered and number % 5 == 0
        if none:
            context = context.replace(f" {colour} ", " ")
        start = [] if none else [context.index(colour)]
        rows.append(
            {
                "question": f"which {animal}",
                "context": context,
                "answers": {"text": [colour][: len(start)], "answer_start": start},
            }
        )
    return rows


def base(folder: Path, kind: str = "bert", **changes: Any) -> Path:
    model = tiny.gpt2() if kind == "gpt2" else tiny.encoder(kind, **changes)
    tiny.save(folder / kind, model)
    if kind != "gpt2":
        tiny.wordpieces(WORDS).save_pretrained(folder / kind)
    return folder / kind


def train(
    folder: Path, rows: list[dict[str, Any]], kind: str = "bert", name: str = "run", **sections: Any
) -> tuple[Path, Any]:
    tiny.jsonl(folder / "train.jsonl", rows)
    model = folder / kind if (folder / kind).exists() else base(folder, kind)
    data = {"train": "train.jsonl", "eval": {"count": 24}, **sections.pop("data", {})}
    return jobs.train(folder, model, name, **{"task": NAME, "data": data, "train": QUICK, **sections})


@pytest.mark.parametrize(("filling", "longest"), [(0, 128), (24, 16)])
def test_it_learns_to_find_answers_and_that_there_is_none(tmp_path: Path, filling: int, longest: int) -> None:
    rows = questions(answered=False, filling=filling)
    task = {**NAME, "stride": 4}
    run, _ = train(tmp_path, rows, task=task, data={"max_length": longest}, train=LEARNS)
    metrics = jobs.manifest(run)["metrics"]
    assert metrics["exact_match"] > 0.9, metrics
    assert metrics["no_answer_accuracy"] > 0.5
    loaded = peftctl.load(run)
    again = loaded.held_out()(loaded.model)
    assert again["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert again["exact_match"] == metrics["exact_match"]


@pytest.mark.parametrize("kind", ["distilbert", "roberta", "electra", "modernbert", "gpt2"])
def test_every_kind_of_head_is_read_back(tmp_path: Path, kind: str) -> None:
    run, _ = train(tmp_path, questions(), kind, train={**QUICK, "epochs": 2})
    loaded = peftctl.load(run)
    assert loaded.held_out()(loaded.model)["loss"] == pytest.approx(jobs.manifest(run)["metrics"]["loss"], rel=1e-5)


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "p_tuning", "full", "ia3"])
def test_answers_stand_where_they_stood_whatever_a_method_puts_before_rows(tmp_path: Path, method: str) -> None:
    run, _ = train(tmp_path, questions(), method={"name": method}, train={**QUICK, "epochs": 2})
    loaded = peftctl.load(run)
    batch = loaded.collate(loaded.held_out().rows.encoded[:3])
    with torch.no_grad():
        said = TASK.outputs(loaded.model, batch["inputs"])
    assert len(said) == int(batch["inputs"]["attention_mask"].sum())


def test_padding_and_micro_batches_change_nothing_but_rounding(tmp_path: Path) -> None:
    base(tmp_path, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    losses = [
        jobs.losses(
            train(
                tmp_path, questions(), name=f"run{tokens}", train={**QUICK, "epochs": 1, "micro_batch_tokens": tokens}
            )[1]
        )
        for tokens in (4096, 40)
    ]
    one, many = (torch.tensor(each, dtype=torch.float64) for each in losses)
    assert (one - many).abs().max() <= len(one) * 64 * torch.finfo(torch.float32).eps * one.max()


def test_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    saved = {**QUICK, "epochs": 2, "save_every": 1, "keep_checkpoints": 100}
    whole, _ = train(tmp_path, questions(), name="whole", train=saved)
    jobs.stopped_after(whole, 7, tmp_path / "half")
    assert jobs.bits(train(tmp_path, questions(), name="half", train=saved)[0]) == jobs.bits(whole)


def encoded(question: str, context: str, answer: str | None) -> Encoded:
    answers = ((context.index(answer), answer),) if answer else ()
    (made,) = TASK.encode([Span(question, context, answers)], tiny.wordpieces(WORDS))
    assert isinstance(made, list)
    return made[0]


def test_the_label_is_the_answers_tokens_and_places_are_in_the_text() -> None:
    row = encoded("the cat", "a very red cat", "red cat")
    # [CLS] the cat [SEP] a very red cat [SEP]
    assert row.labels == (6.0, 7.0)
    assert row.parts[:2] == (4, 1)
    assert row.parts[2:] == (0, 2, 7, 11, 1, 6, 10, 14)


def test_windows_cover_the_text_and_share_the_stride() -> None:
    context = " ".join(WORDS[at % len(WORDS)] for at in range(23))
    row = encoded("the", context, None)
    task = TASK.of(type("S", (), {"no_answer": True, "stride": 2, "max_answer_tokens": None}))
    windows = task.fit(row, 11, "split", tiny.wordpieces(WORDS))
    room = 11 - 4
    starts = [window.parts[2] for window in windows]
    places = list(row.parts[2 : 2 + 23])
    at = [places.index(start) for start in starts]
    assert at == [0, 5, 10, 15, 20][: len(at)]
    assert at[-1] + room >= 23 > at[-2] + room
    assert all(window.ids[:3] == row.ids[:3] and window.ids[-1] == row.ids[-1] for window in windows)
    assert all(len(window) <= 11 for window in windows)


def test_an_answer_is_taught_in_the_windows_that_hold_all_of_it_and_in_no_other() -> None:
    context = " ".join(["a"] * 10 + ["red", "cat"] + ["a"] * 10)
    row = encoded("the", context, "red cat")
    task = TASK.of(type("S", (), {"no_answer": True, "stride": 3, "max_answer_tokens": None}))
    tokenizer = tiny.wordpieces(WORDS)
    red, cat = (tokenizer.convert_tokens_to_ids(word) for word in ("red", "cat"))
    taught = 0
    for window in task.fit(row, 12, "split", tokenizer):
        first, last = map(int, window.labels)
        whole = red in window.ids and cat in window.ids
        assert (first, last) == ((window.ids.index(red), window.ids.index(cat)) if whole else (0, 0))
        taught += whole
    assert taught


def test_a_question_that_leaves_no_room_is_dropped() -> None:
    row = encoded(" ".join(["old"] * 30), "a red cat", "red")
    assert TASK.fit(row, 20, "split", tiny.wordpieces(WORDS)) == []


def test_the_best_span_is_that_of_all_pairs_worked_out_one_by_one() -> None:
    chance = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = torch.randn(12, 2, generator=chance)
        text = np.zeros(12, bool)
        text[3:11] = True
        task = TASK.of(type("S", (), {"no_answer": True, "stride": 0, "max_answer_tokens": 3}))
        score, first, last, nothing = task._best(logits, torch.from_numpy(text))
        pairs = {(i, j): float(logits[3 + i, 0] + logits[3 + j, 1]) for i in range(8) for j in range(i, min(i + 3, 8))}
        best = max(pairs, key=pairs.__getitem__)
        assert (first, last) == best
        assert score == pytest.approx(pairs[best])
        assert nothing == pytest.approx(float(logits[0].sum()))


ANSWER = {"text": ["red"], "answer_start": [2]}


@pytest.mark.parametrize(("row", "said"), [
    ({"question": "q", "context": "a red cat", "answers": {"text": ["red"], "answer_start": [3]}},
     "the answer 'red' is not at 3, where 'ed ' stands; it is at 2"),
    ({"question": "q", "context": "a red cat", "answers": {"text": ["blue"], "answer_start": [2]}},
     "the answer 'blue' is not at 2, where 'red ' stands; the context does not have it"),
    ({"question": "q", "context": "a red cat", "answers": {"text": ["red"], "answer_start": []}},
     "1 answers and 0 places"),
    ({"question": "q", "context": "a red cat", "answers": ["red"]}, "answers is a list, not {text"),
    ({"question": " ", "context": "a red cat", "answers": ANSWER}, "question says nothing"),
    ({"question": "q", "context": "a red cat", "answers": {"text": ["red"], "answer_start": [True]}},
     "answer_start is true or false, not a whole number"),
])  # fmt: skip
def test_what_is_wrong_with_answers_is_named(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    tiny.jsonl(tmp_path / "train.jsonl", [{"question": "q", "context": "a red cat", "answers": ANSWER}, row])
    with pytest.raises(DataError) as refused:
        jobs.train(tmp_path, base(tmp_path), task=NAME)
    assert f"train.jsonl:2: {said}" in refused.value.message


def test_what_training_teaches_of_no_answer_is_said(tmp_path: Path) -> None:
    _, events = train(
        tmp_path, questions(answered=False), task={**NAME, "no_answer": False}, train={**QUICK, "epochs": 1}
    )
    assert any("training rows have no answer" in str(event.get("message")) for event in events)


def test_a_merged_model_answers_the_same(tmp_path: Path) -> None:
    from transformers import AutoModelForQuestionAnswering

    from peftctl.merge.merge import Options, merge
    from peftctl.merge.source import open_source

    run, _ = train(tmp_path, questions())
    merge(open_source(run, None, print), tmp_path / "merged", Options())
    plain = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "merged").eval()
    loaded = peftctl.load(run)
    batch = loaded.collate(loaded.held_out().rows.encoded[:5])
    with torch.no_grad():
        wanted, found = (TASK.outputs(model.eval(), batch["inputs"]) for model in (loaded.model, plain))
    assert (wanted - found).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_model_whose_weights_would_not_be_found_is_refused_before_they_are_read(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "llama", tiny.llama())
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(tiny.save(tmp_path / "other", tiny.gpt2()) / "model.safetensors")
    tiny.jsonl(tmp_path / "train.jsonl", questions())
    with pytest.raises(UsageError, match="LlamaForQuestionAnswering looks for them under 'transformer'"):
        jobs.train(tmp_path, model, task=NAME)
