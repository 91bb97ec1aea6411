"""One text read, another written: T5 and BART trained, resumed, merged, and what they write measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import peftctl
from peftctl.errors import DataError, RecipeError, UsageError
from tests import jobs, tiny
from tests.integration.test_tasks import texts

NAME = {"name": "seq2seq_lm"}
TRAIN = {"epochs": 2, "batch_size": 8, "learning_rate": 3e-3}


def rows(count: int = 96) -> list[dict[str, Any]]:
    return [{"source": text, "target": colour} for text, colour, _ in texts(count)]


def train(folder: Path, kind: str = "t5", name: str = "run", **sections: Any) -> tuple[Path, Any]:
    tiny.jsonl(folder / "train.jsonl", rows())
    model = folder / kind if (folder / kind).exists() else tiny.save(folder / kind, tiny.writer(kind))
    data = {"train": "train.jsonl", "eval": {"count": 24}}
    return jobs.train(folder, model, name, **{"task": NAME, "data": data, "train": TRAIN, **sections})


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_it_learns_to_write(tmp_path: Path, kind: str) -> None:
    settings = {
        "method": {"name": "full"},
        "train": {**TRAIN, "epochs": 20},
        "eval": {"generate": {"max_new_tokens": 12}},
    }
    run, _ = train(tmp_path, kind, **settings)
    written = jobs.manifest(run)["metrics"]["written"]
    assert written["rows"] == 24
    assert written["exact_match"] > 0.7, written
    assert written["chrf"] > 70
    source = rows()[0]
    assert peftctl.load(run).generate(source["source"], max_new_tokens=12) == source["target"]


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize(
    "method", ["lora", "ia3", "prompt_tuning", "p_tuning", "prefix_tuning", "loha", "full", "ln_tuning"]
)
def test_methods_and_what_they_leave(tmp_path: Path, kind: str, method: str) -> None:
    run, _ = train(tmp_path, kind, method={"name": method}, eval={"generate": {"max_new_tokens": 4, "limit": 3}})
    loaded = peftctl.load(run)
    assert loaded.room([5] * 9) == loaded.room([5])  # what is read takes no room from what is written
    facts = jobs.manifest(run)["metrics"]
    assert loaded.held_out()(loaded.model)["loss"] == pytest.approx(facts["loss"], rel=1e-5)
    assert loaded.held_out().written(loaded.model)["written"] == facts["written"]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_loss_is_that_of_the_logits_over_all_targets_of_the_step(tmp_path: Path, kind: str) -> None:
    losses = [
        jobs.losses(train(tmp_path, kind, f"run{tokens}", train={**TRAIN, "micro_batch_tokens": tokens})[1])
        for tokens in (4096, 64)
    ]
    one, many = (torch.tensor(each, dtype=torch.float64) for each in losses)
    assert (one - many).abs().max() <= len(one) * 64 * torch.finfo(torch.float32).eps * one.max()


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_mean_over_a_batch_is_what_the_model_says_itself(kind: str) -> None:
    from peftctl.example import Pair
    from peftctl.objectives.seq2seq_cross_entropy import OBJECTIVE
    from peftctl.tasks.contract import Layout, tensors
    from peftctl.tasks.seq2seq_lm import TASK

    model = tiny.writer(kind).eval()
    made = TASK.encode([Pair(row["source"], row["target"]) for row in rows(9)], tiny.tokenizer())
    batch = tensors(TASK.collate([row for encoded in made for row in encoded], Layout(258)))
    read = {name: value for name, value in batch["inputs"].items() if name != "labels"}
    with torch.no_grad():
        own, found = model(**read, labels=batch["labels"]).loss, OBJECTIVE.step(model, batch)
    assert float(found.sum / found.count) == pytest.approx(float(own), rel=1e-5)
    assert found.count == int((batch["labels"] != -100).sum())


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_it_goes_on_to_the_same_bits(tmp_path: Path, kind: str) -> None:
    saved = {**TRAIN, "save_every": 1, "keep_checkpoints": 100}
    whole, _ = train(tmp_path, kind, "whole", train=saved)
    jobs.stopped_after(whole, 7, tmp_path / "half")
    assert jobs.bits(train(tmp_path, kind, "half", train=saved)[0]) == jobs.bits(whole)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_a_merged_model_writes_the_same(tmp_path: Path, kind: str) -> None:
    from transformers import AutoModelForSeq2SeqLM

    from peftctl.merge.merge import Options, merge
    from peftctl.merge.source import open_source

    run, _ = train(tmp_path, kind)
    merge(open_source(run, None, print), tmp_path / "merged", Options())
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "merged").eval()
    loaded = peftctl.load(run)
    batch = loaded.collate(loaded.held_out().rows.encoded[:5])
    task = loaded.collate.task
    with torch.no_grad():
        wanted, found = (task.outputs(model.eval(), batch["inputs"]) for model in (loaded.model, plain))
    assert (wanted - found).abs().max() <= 1e-5 * wanted.abs().max()


def test_what_is_written_ends(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    from peftctl.example import Pair
    from peftctl.tasks.seq2seq_lm import TASK

    ((row,),) = TASK.encode([Pair("a", "b")], tokenizer)
    assert row.ids[-1] == tokenizer.eos_token_id
    assert row.weights == (0.0, 1.0, 1.0)


def test_messages_and_scores_are_no_task_for_it(tmp_path: Path) -> None:
    run, _ = train(tmp_path)
    with pytest.raises(UsageError, match="seq2seq_lm reads a text, not messages"):
        peftctl.load(run).generate([{"role": "user", "content": "a"}])
    tiny.jsonl(tmp_path / "train.jsonl", [{"sentence1": "a", "sentence2": "b", "score": 1.0}])
    with pytest.raises(DataError, match="a pair with a score, where one text is to be written"):
        jobs.train(tmp_path, tmp_path / "t5", "two", task=NAME)
    with pytest.raises(RecipeError, match=r"eval.choices: has no effect on seq2seq_lm"):
        train(tmp_path, name="three", eval={"choices": ["a", "b"]})


def test_a_decoder_is_refused_before_weights(tmp_path: Path, tiny_model: Path) -> None:
    tiny.jsonl(tmp_path / "train.jsonl", rows())
    with pytest.raises(UsageError, match="seq2seq_lm"):
        jobs.train(tmp_path, tiny_model, task=NAME)


def test_no_more_is_written_than_the_model_can_attend_to(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 48, "eos_token_id": 258, "bos_token_id": 258}
    model = tiny.save(tmp_path / "short", GPT2LMHeadModel(GPT2Config(vocab_size=264, **sizes)))
    tiny.jsonl(tmp_path / "train.jsonl", [{"prompt": "a" * 30, "completion": "b" * 9}] * 8)
    settings = {
        "data": {"eval": {"count": 2}},
        "eval": {"generate": {"max_new_tokens": 400}},
        "method": {"name": "full"},
    }
    run, _ = jobs.train(tmp_path, model, train={**TRAIN, "epochs": 1}, **settings)
    assert jobs.manifest(run)["metrics"]["written"]["rows"] == 2
