"""Texts as vectors: contrastive and by scores, whatever the passes; what is found is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import peftctl
from peftctl.errors import DataError, RecipeError, UsageError
from peftctl.tasks.feature_extraction import TASK
from tests import jobs, tiny
from tests.integration.test_tasks import LEARNS, QUICK, WORDS, texts

NAME = {"name": "feature_extraction"}


def pairs(count: int = 96) -> list[dict[str, Any]]:
    return [{"anchor": text, "positive": f"{colour} {animal}"} for text, colour, animal in texts(count)]


def triples(count: int = 96) -> list[dict[str, Any]]:
    others = {"red": "blue", "blue": "green", "green": "black", "black": "red"}
    return [
        {"anchor": text, "positive": f"{colour} {animal}", "negative": f"{others[colour]} {animal}"}
        for text, colour, animal in texts(count)
    ]


def scored(count: int = 300) -> list[dict[str, Any]]:
    return [
        {"sentence1": one[0], "sentence2": other[0], "score": float(one[1] == other[1])}
        for one, other in zip(texts(count), texts(count, seed=1), strict=True)
    ]


def base(folder: Path, kind: str = "bert", **changes: Any) -> Path:
    model = tiny.llama() if kind == "llama" else tiny.writer(kind) if kind == "t5" else tiny.encoder(kind, **changes)
    tiny.save(folder / kind, model)
    if kind not in ("llama", "t5"):
        tiny.wordpieces(WORDS).save_pretrained(folder / kind)
    return folder / kind


def train(
    folder: Path, rows: list[dict[str, Any]], kind: str = "bert", name: str = "run", **sections: Any
) -> tuple[Path, Any]:
    tiny.jsonl(folder / "train.jsonl", rows)
    model = folder / kind if (folder / kind).exists() else base(folder, kind)
    data = {"train": "train.jsonl", "eval": {"count": 24}}
    return jobs.train(folder, model, name, **{"task": NAME, "data": data, "train": QUICK, **sections})


@pytest.mark.parametrize(
    ("rows", "metric", "least"), [(pairs, "recall_at_1", 0.9), (triples, "mrr", 0.9), (scored, "spearman", 0.5)]
)
def test_it_learns_and_is_measured(tmp_path: Path, rows: Any, metric: str, least: float) -> None:
    run, _ = train(tmp_path, rows(), train=LEARNS)
    facts = jobs.manifest(run)
    assert facts["metrics"][metric] > least, facts["metrics"]
    assert facts["loads_with"] == "peft"
    loaded = peftctl.load(run)
    assert loaded.held_out()(loaded.model)["loss"] == pytest.approx(facts["metrics"]["loss"], rel=1e-4)


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "modernbert", "llama", "t5"])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_every_kind_of_model_and_pooling(tmp_path: Path, kind: str, pooling: str) -> None:
    run, _ = train(tmp_path, pairs(40), kind, task={**NAME, "pooling": pooling}, train={**QUICK, "epochs": 1})
    assert jobs.manifest(run)["verified"]["reload"]["verified"] == "yes"


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning", "full", "ia3", "loha"])
def test_methods(tmp_path: Path, method: str) -> None:
    run, _ = train(tmp_path, pairs(40), method={"name": method}, train={**QUICK, "epochs": 1})
    loaded = peftctl.load(run)
    assert loaded.held_out()(loaded.model)["loss"] == pytest.approx(jobs.manifest(run)["metrics"]["loss"], rel=1e-4)


@pytest.mark.parametrize("rows", [pairs, triples, scored])
def test_several_passes_give_what_one_gives(tmp_path: Path, rows: Any) -> None:
    """A step's rows are compared with each other however many passes they take."""
    base(tmp_path, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    losses = [
        jobs.losses(
            train(tmp_path, rows(), name=f"run{tokens}", train={**QUICK, "epochs": 1, "micro_batch_tokens": tokens})[1]
        )
        for tokens in (4096, 24)
    ]
    one, many = (torch.tensor(each, dtype=torch.float64) for each in losses)
    assert (one - many).abs().max() <= len(one) * 64 * torch.finfo(torch.float32).eps * one.max()


def test_the_passes_gradient_is_that_of_one_pass_with_dropout(tmp_path: Path) -> None:
    """What is made again on the way back is made with the same dropout."""
    from peftctl.objectives.embeddings import embed

    model = tiny.encoder("bert").train()
    passes = [
        {"input_ids": torch.arange(1, 7).reshape(2, 3) + at, "attention_mask": torch.ones(2, 3, dtype=torch.long)}
        for at in range(3)
    ]
    plain = []
    for checkpointed in (False, True):
        model.zero_grad()
        torch.manual_seed(3)
        vectors = (
            embed(model, passes, "mean")
            if checkpointed
            else torch.cat([embed(model, [each], "mean") for each in passes])
        )
        (vectors @ vectors.T).square().sum().backward()
        plain.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert torch.allclose(*plain, rtol=1e-4, atol=1e-6)


def test_the_loss_is_the_formula(tmp_path: Path) -> None:
    from peftctl.objectives.contrastive import OBJECTIVE

    vectors = torch.nn.functional.normalize(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), dim=-1)
    batch = {
        "anchors": torch.tensor([0, 2, 4]), "candidates": torch.tensor([1, 3, 5]), "right": torch.arange(3),
        "same": torch.tensor([[False, False, True], [False, False, False], [False, False, False]]), "temperature": 0.1,
    }  # fmt: skip
    wanted = []
    for row, allowed in enumerate(([0, 1], [0, 1, 2], [0, 1, 2])):
        scores = {c: float(vectors[2 * row] @ vectors[2 * c + 1]) / 0.1 for c in allowed}
        wanted.append(torch.tensor(list(scores.values())).logsumexp(0) - scores[row])
    assert torch.allclose(OBJECTIVE.each(vectors, batch), torch.stack(wanted), rtol=1e-5)


def test_what_says_the_same_is_no_wrong_answer() -> None:
    from peftctl.example import Pair
    from peftctl.tasks.contract import Layout

    tokenizer = tiny.wordpieces(WORDS)
    rows = TASK.encode([Pair("a cat", "red"), Pair("a dog", "red"), Pair("a cow", "a cat")], tokenizer)
    batch = TASK.collate([row for made in rows for row in made], Layout(0))
    assert batch["same"].tolist() == [[False, True, True], [True, False, False], [False, False, False]]


def test_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    saved = {**QUICK, "epochs": 2, "save_every": 1, "keep_checkpoints": 100, "micro_batch_tokens": 40}
    whole, _ = train(tmp_path, triples(), name="whole", train=saved)
    jobs.stopped_after(whole, 7, tmp_path / "half")
    assert jobs.bits(train(tmp_path, triples(), name="half", train=saved)[0]) == jobs.bits(whole)


@pytest.mark.parametrize(("rows", "task", "said"), [
    ([{"sentence1": "a", "sentence2": "b", "score": at} for at in (4.0, 5.0)], {},
     "score is 4, where a cosine is in -1 to 1"),
    ([{"anchor": "a", "positive": "b"}], {"problem": "similarity"}, "the pair has no score"),
    ([{"sentence1": "a", "sentence2": "b", "score": 0.5}], {"problem": "retrieval"}, "the pair has a score"),
    ([{"sentence1": "a", "sentence2": "b", "score": 0.5}], {}, "every row has the same score"),
])  # fmt: skip
def test_what_is_wrong_with_rows_is_named(tmp_path: Path, rows: Any, task: Any, said: str) -> None:
    tiny.jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError) as refused:
        jobs.train(tmp_path, base(tmp_path), task={**NAME, **task})
    assert said in refused.value.message


def test_a_problem_of_another_task_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"task.problem: is none of feature_extraction's"):
        train(tmp_path, pairs(), task={**NAME, "problem": "multi"})
    with pytest.raises(RecipeError, match=r"data.overlong: cannot be done for feature_extraction"):
        jobs.train(tmp_path, base(tmp_path), task=NAME, data={"overlong": "split"})


def test_plain_peft_and_a_merged_model_give_the_same_vectors(tmp_path: Path) -> None:
    from peft import AutoPeftModelForFeatureExtraction
    from transformers import AutoModel

    from peftctl.merge.merge import Options, merge
    from peftctl.merge.source import open_source

    run, _ = train(tmp_path, pairs())
    merge(open_source(run, None, print), tmp_path / "merged", Options())
    assert "AutoPeftModelForFeatureExtraction.from_pretrained" in (run / "adapter" / "README.md").read_text()
    assert not (tmp_path / "merged" / "generation_config.json").exists()  # it writes nothing
    loaded = peftctl.load(run)
    batch = loaded.collate(loaded.held_out().rows.encoded[:5])
    plain = AutoPeftModelForFeatureExtraction.from_pretrained(run / "adapter").eval()
    merged = AutoModel.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        wanted, found, baked = (TASK.outputs(model.eval(), batch["inputs"]) for model in (loaded.model, plain, merged))
    assert torch.equal(wanted, found)
    assert (wanted - baked).abs().max() <= 1e-5


def test_a_model_without_a_pooler_in_its_checkpoint_is_whole(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = base(tmp_path)
    tensors = {name: value for name, value in load_file(model / "model.safetensors").items() if "pooler" not in name}
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    run, _ = train(tmp_path, pairs(40), train={**QUICK, "epochs": 1})
    assert not any("pooler" in name for name in jobs.manifest(run)["targets"])
    with pytest.raises(UsageError, match="pooler"):
        train(tmp_path, pairs(40), name="two", method={"name": "lora", "targets": ["pooler.dense"]})
