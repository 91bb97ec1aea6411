"""Classification and tagging: heads that are new are trained, saved, read back, merged; labels are accounted for."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import peftctl
from peftctl.cli import app
from peftctl.errors import DataError, RecipeError, UsageError
from peftctl.events import Events
from peftctl.formats import FORMATS
from peftctl.merge.merge import Options, merge
from peftctl.merge.source import open_source
from peftctl.recipe.task_settings import TaskSettings
from peftctl.run import open_run
from peftctl.tasks import TASKS
from tests import jobs, tiny

COLOURS, ANIMALS = ("red", "blue", "green", "black"), ("cat", "dog", "cow")
WORDS = (*COLOURS, *ANIMALS, "a", "the", "very", "old")
QUICK = {"epochs": 12, "batch_size": 8, "learning_rate": 1e-2}
LEARNS = {"epochs": 40, "batch_size": 8, "learning_rate": 5e-3}


def texts(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """Some words with a colour and an animal among them."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        colour, animal = chance.choice(COLOURS), chance.choice(ANIMALS)
        words = [*chance.choices(("a", "the", "very", "old"), k=chance.randint(1, 5)), colour, animal]
        found.append((" ".join(words), colour, animal))
    return found


ROWS: dict[str, Any] = {
    "single": lambda: [{"text": text, "label": animal} for text, _, animal in texts(96)],
    "multi": lambda: [{"text": text, "label": [colour, animal]} for text, colour, animal in texts(96)],
    "regression": lambda: [{"text": text, "label": len(text) / 10} for text, _, _ in texts(96)],
    "pairs": lambda: [
        {"sentence1": one[0], "sentence2": other[0], "label": "same" if one[2] == other[2] else "other"}
        for one, other in zip(texts(96), texts(96, seed=1), strict=True)
    ],
    "tags": lambda: [
        {"tokens": text.split(), "tags": ["O"] * (len(text.split()) - 2) + ["B-NAME", "I-NAME"]}
        for text, _, _ in texts(96)
    ],
}


def base(folder: Path, kind: str) -> Path:
    """A model folder of that kind; encoders have WordPiece."""
    made: Any = tiny.llama() if kind == "llama" else None
    if kind in tiny.WRITERS:  # their classifiers read the token that ends a text: [SEP]
        made = tiny.writer(kind, eos_token_id=3, pad_token_id=0, decoder_start_token_id=0)
    made = made or tiny.encoder(kind)
    tiny.save(folder / kind, made)
    if kind != "llama":
        tiny.wordpieces(WORDS).save_pretrained(folder / kind)
    return folder / kind


def train(folder: Path, kind: str, rows: str, name: str = "run", **sections: Any) -> Path:
    tiny.jsonl(folder / "train.jsonl", ROWS[rows]())
    model = folder / kind if (folder / kind).exists() else base(folder, kind)
    task = {"name": "token_cls" if rows == "tags" else "seq_cls"}
    values = {"task": task, "data": {"train": "train.jsonl", "eval": {"count": 24}}, "train": QUICK, **sections}
    return jobs.train(folder, model, name, **values)[0]


@pytest.mark.parametrize(("rows", "metric", "least"), [
    ("single", "accuracy", 0.9), ("multi", "micro_f1", 0.9), ("regression", "pearson", 0.8), ("tags", "f1", 0.9),
])  # fmt: skip
def test_it_learns_and_is_measured(tmp_path: Path, rows: str, metric: str, least: float) -> None:
    run = train(tmp_path, "bert", rows, train=LEARNS)
    facts = jobs.manifest(run)
    assert facts["metrics"][metric] > least, facts["metrics"]
    assert facts["loads_with"] == "peft"
    assert facts["verified"]["reload"]["verified"] == "yes"


@pytest.mark.parametrize("kind", ["bert", "distilbert", "roberta", "deberta-v2", "modernbert", "electra", "llama"])
@pytest.mark.parametrize("rows", ["single", "tags"])
def test_every_kind_of_head_is_trained_saved_and_read_back(tmp_path: Path, kind: str, rows: str) -> None:
    run = train(tmp_path, kind, rows, train={**QUICK, "epochs": 2})
    facts = jobs.manifest(run)
    loaded = [peftctl.load(run) for _ in range(2)]  # whose new heads are other random numbers before they are filled
    measured = [each.held_out()(each.model) for each in loaded]
    assert measured[0] == measured[1]
    assert measured[0]["loss"] == pytest.approx(facts["metrics"]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "name", ["lora", "ia3", "loha", "prompt_tuning", "prefix_tuning", "full", "bitfit", "ln_tuning", "vera"]
)
@pytest.mark.parametrize("rows", ["single", "tags"])
def test_every_way_of_training_keeps_the_head(tmp_path: Path, name: str, rows: str) -> None:
    run = train(tmp_path, "bert", rows, method={"name": name}, train={**QUICK, "epochs": 2})
    loaded = peftctl.load(run)
    assert loaded.held_out()(loaded.model)["loss"] == pytest.approx(jobs.manifest(run)["metrics"]["loss"], rel=1e-5)


def test_plain_peft_loads_adapter_and_head(tmp_path: Path) -> None:
    from peft import AutoPeftModelForSequenceClassification

    run = train(tmp_path, "bert", "single")
    named = 'id2label={0: "cat", 1: "cow", 2: "dog"}'
    assert f", {named})\n" in (run / "adapter" / "README.md").read_text()
    told = {"id2label": {0: "cat", 1: "cow", 2: "dog"}}
    plain = AutoPeftModelForSequenceClassification.from_pretrained(run / "adapter", **told).eval()
    assert plain.config.id2label == told["id2label"]
    loaded = peftctl.load(run)
    batch = loaded.collate(loaded.held_out().rows.encoded[:5])
    with torch.no_grad():
        assert torch.equal(plain(**batch["inputs"]).logits, loaded.model.eval()(**batch["inputs"]).logits)


@pytest.mark.every
@pytest.mark.parametrize(
    ("kind", "rows"),
    [("bert", "single"), ("bert", "tags"), ("distilbert", "single"), ("modernbert", "single"), ("t5", "single"),
     ("bart", "single")],
)  # fmt: skip
def test_a_merged_classifier_is_a_model_with_its_labels(tmp_path: Path, kind: str, rows: str) -> None:
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

    run = train(tmp_path, kind, rows)
    merge(open_source(run, None, print), tmp_path / "merged", Options())
    auto = AutoModelForTokenClassification if rows == "tags" else AutoModelForSequenceClassification
    plain = auto.from_pretrained(tmp_path / "merged").eval()
    assert set(plain.config.id2label.values()) == ({"O", "B-NAME", "I-NAME"} if rows == "tags" else set(ANIMALS))
    loaded = peftctl.load(run)
    batch = loaded.collate(loaded.held_out().rows.encoded[:5])
    with torch.no_grad():
        wanted, found = loaded.model.eval()(**batch["inputs"]).logits, plain(**batch["inputs"]).logits
    assert (wanted - found).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("rows", ["single", "multi", "regression", "tags"])
def test_it_goes_on_to_the_same_bits(tmp_path: Path, rows: str) -> None:
    saved = {**QUICK, "epochs": 2, "save_every": 1, "keep_checkpoints": 100}
    whole = train(tmp_path, "bert", rows, "whole", train=saved)
    jobs.stopped_after(whole, 7, tmp_path / "half")
    assert jobs.bits(train(tmp_path, "bert", rows, "half", train=saved)) == jobs.bits(whole)


def test_the_micro_batch_changes_nothing_but_rounding(tmp_path: Path) -> None:
    for rows in ("single", "multi", "regression", "tags"):
        folder = tmp_path / rows
        folder.mkdir()
        tiny.save(folder / "bert", tiny.encoder("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
        tiny.wordpieces(WORDS).save_pretrained(folder / "bert")
        one, many = (
            jobs.events(
                train(folder, "bert", rows, f"run{tokens}", train={**QUICK, "epochs": 1, "micro_batch_tokens": tokens})
            )
            for tokens in (4096, 24)
        )
        one, many = (torch.tensor(jobs.losses(each), dtype=torch.float64) for each in (one, many))
        assert (one - many).abs().max() <= len(one) * 64 * torch.finfo(torch.float32).eps * one.max()


@pytest.mark.parametrize(("rows", "task", "said"), [
    ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], {}, "every row has the same label, 'x'"),
    ([{"text": "a", "label": "x"}, {"text": "b", "label": "z"}], {"labels": ["x", "y"]},
     "train.jsonl:2: label 'z' is none of the labels; allowed: x, y"),
    ([{"text": "a", "label": "spam"}, {"text": "b", "label": "spma"}], {"labels": ["ham", "spam"]},
     "did you mean spam"),
    ([{"text": "a", "label": "x"}, {"text": "b", "label": ["x", "y"]}], {"labels": ["x", "y"]}, "label is a list"),
    ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], {"problem": "regression"}, "is no number"),
    ([{"text": "a", "label": None}], {}, "label is null"),
    ([{"text": " ", "label": "x"}], {}, "text says nothing"),
    ([{"tokens": ["a", "b"], "tags": ["O"]}], {"name": "token_cls"}, "2 tokens and 1 tags"),
    ([{"tokens": ["a", 1.5], "tags": ["O", "O"]}], {"name": "token_cls"}, "tokens has a number at place 2"),
    ([{"tokens": ["a"], "tags": ["O"]}, {"tokens": ["b"], "tags": ["B-X"]}],
     {"name": "token_cls", "labels": ["O", "B-Y"]}, "train.jsonl:2: tag 'B-X' is none of the tags"),
])  # fmt: skip
def test_what_is_wrong_with_labels_is_named(tmp_path: Path, rows: Any, task: dict[str, Any], said: str) -> None:
    tiny.jsonl(tmp_path / "train.jsonl", rows)
    with pytest.raises(DataError) as refused:
        jobs.train(tmp_path, base(tmp_path, "bert"), task={"name": "seq_cls", **task})
    assert said in refused.value.message


def test_a_class_without_rows_is_told_and_one_of_held_out_rows_alone_is_a_fault(tmp_path: Path) -> None:
    model = base(tmp_path, "bert")
    tiny.jsonl(tmp_path / "train.jsonl", [{"text": "a cat", "label": "x"}, {"text": "a dog", "label": "y"}])
    _, events = jobs.train(tmp_path, model, "one", task={"name": "seq_cls", "labels": ["x", "y", "z"]})
    assert "task.labels: no training row is z" in [event.get("message") for event in events]
    tiny.jsonl(tmp_path / "eval.jsonl", [{"text": "a cow", "label": "w"}])
    with pytest.raises(DataError, match=r"eval.jsonl:1: label 'w' is none of the labels; allowed: x, y"):
        jobs.train(tmp_path, model, "two", task={"name": "seq_cls"}, data={"eval": "eval.jsonl"})


@pytest.mark.parametrize("rows", ["single", "multi", "regression", "tags"])
def test_the_resolved_recipe_gives_the_same_bits(tmp_path: Path, rows: str) -> None:
    from peftctl.reproduce import reproduce

    run = train(tmp_path, "bert", rows, train={**QUICK, "epochs": 1})
    assert reproduce(open_run(run), None, Events()).same


def test_a_stream_has_to_be_told_its_labels_and_numbers_have_none(tmp_path: Path) -> None:
    streamed = {"train": {**QUICK, "epochs": None, "max_steps": 2}, "data": {"eval": None, "streaming": True}}
    with pytest.raises(
        UsageError, match=r"a stream does not say what seq_cls needs to know: set task.labels, task.problem"
    ):
        train(tmp_path, "bert", "single", **streamed)
    run = train(tmp_path, "bert", "regression", task={"name": "seq_cls", "problem": "regression"}, **streamed)
    assert jobs.manifest(run)["steps"] == 2


@pytest.mark.parametrize(("task", "said"), [
    ({"name": "seq_cls", "labels": ["a", "b", "a"]}, "task.labels: a label is repeated"),
    ({"name": "seq_cls", "labels": ["a", "b"], "problem": "regression"},
     "task.labels: has no effect with problem: regression"),
    ({"name": "feature_extraction", "temperature": 0.1, "problem": "similarity"},
     "task.temperature: has no effect with problem: similarity"),
])  # fmt: skip
def test_what_contradicts_itself_is_a_fault(tmp_path: Path, task: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        train(tmp_path, "bert", "single", task=task)


def test_what_writes_nothing_is_not_asked_to(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"eval.generate: has no effect on seq_cls: its model writes no text"):
        train(tmp_path, "bert", "single", eval={"generate": {}})


def test_what_has_no_effect_on_a_task_is_a_fault(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(RecipeError, match=r"task.labels: has no effect on causal_lm"):
        jobs.train(tmp_path, tiny_model, task={"name": "causal_lm", "labels": ["x", "y"]})
    with pytest.raises(RecipeError, match=r"task.problem: has no effect on token_cls"):
        jobs.train(tmp_path, tiny_model, task={"name": "token_cls", "problem": "single"})


def test_an_encoders_missing_layer_is_no_new_head(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = base(tmp_path, "bert")
    tensors = load_file(model / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match=r"encoder.layer.1.output.dense.weight is not in it"):
        train(tmp_path, "bert", "single")


def test_labels_are_in_the_resolved_recipe_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    tiny.jsonl(tmp_path / "train.jsonl", [{"text": f"a {n}", "label": n} for n in (10, 9, 2, 10, 9, 2, 2, 9)])
    run, _ = jobs.train(tmp_path, base(tmp_path, "bert"), task={"name": "seq_cls"})
    assert peftctl.load(run).model.config.id2label == {0: "2", 1: "9", 2: "10"}
    assert json.loads(json.dumps(jobs.manifest(run)["task"])) == "seq_cls"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", ["single", "tags"])
def test_on_a_quantised_base_the_head_stays_whole(tmp_path: Path, bits: int, rows: str) -> None:
    from peftctl.methods.parts import heads

    model = {"dtype": "float32", "quantization": {"bits": bits}}
    run = train(tmp_path, "bert", rows, model=model, train={**QUICK, "epochs": 2})
    loaded = peftctl.load(run)
    assert loaded.held_out()(loaded.model)["loss"] == pytest.approx(jobs.manifest(run)["metrics"]["loss"], rel=1e-5)
    assert heads(loaded.model.get_base_model()) == ("classifier",)
    assert "llm_int8_skip_modules=['classifier']" in (run / "adapter" / "README.md").read_text()
    merge(open_source(run, None, print), tmp_path / "merged", Options())
    assert (tmp_path / "merged" / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["lora", "ia3", "full"])
def test_what_a_method_and_a_head_leave_is_merged(tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForSequenceClassification

    run = train(tmp_path, "bert", "single", method={"name": name}, train={**QUICK, "epochs": 2})
    loaded = peftctl.load(run)
    batch = loaded.collate(loaded.held_out().rows.encoded[:5])
    if name == "full":
        folder = run / "model"
    else:
        folder = tmp_path / "merged"
        merge(open_source(run, None, print), folder, Options())
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        wanted, found = loaded.model.eval()(**batch["inputs"]).logits, plain(**batch["inputs"]).logits
    assert (wanted - found).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_head_that_peft_has_no_place_for_stands_beside_and_is_not_merged(tmp_path: Path) -> None:
    method = {"name": "trainable_tokens", "token_indices": [200, 201, 202]}
    run = train(tmp_path, "bert", "single", method=method, train={**QUICK, "epochs": 2})
    assert (run / "adapter" / "heads.safetensors").exists()
    assert jobs.manifest(run)["loads_with"] == "peftctl"
    loaded = peftctl.load(run)
    assert loaded.held_out()(loaded.model)["loss"] == pytest.approx(jobs.manifest(run)["metrics"]["loss"], rel=1e-5)
    with pytest.raises(UsageError, match="its head stands beside what PEFT saves of trainable_tokens"):
        open_source(run, None, print)


def test_eval_says_why_it_measures_no_base(tmp_path: Path) -> None:
    run = train(tmp_path, "bert", "single")
    done = CliRunner().invoke(app, ["eval", str(run)])
    assert done.exit_code == 0
    assert "the base is not measured: it has no head for seq_cls but the run's" in done.stderr
    assert [line.split()[:1] for line in done.stdout.splitlines()[1:4]] == [["loss"], ["majority"], ["adapter"]]
    done = CliRunner().invoke(app, ["eval", str(run), "--on", "both"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--on: the base has no head for seq_cls but the run's; allowed: adapter" in done.stderr


def test_the_loss_of_several_labels_is_by_label_in_training_and_measuring(tmp_path: Path) -> None:
    from torch.nn.functional import binary_cross_entropy_with_logits

    run = train(tmp_path, "bert", "multi")
    loaded = peftctl.load(run)
    batch = loaded.collate(loaded.held_out().rows.encoded)
    with torch.no_grad():
        logits = loaded.model.eval()(**batch["inputs"]).logits
    wanted = float(binary_cross_entropy_with_logits(logits, batch["labels"]))
    assert jobs.manifest(run)["metrics"]["loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.quick
def test_numbers_with_and_without_a_point_are_numbers_in_any_order() -> None:
    def decided(*labels: Any) -> Any:
        rows = [FORMATS["labelled"].example({"text": "a", "label": label}) for label in labels]
        return TASKS["seq_cls"].decide(TaskSettings(name="seq_cls"), rows)

    for labels in ((1, 0.5, 2), (0.5, 1, 2)):
        assert decided(*labels) == {"problem": "regression"}
    assert decided(1, 0, 1)["labels"] == ("0", "1")
    with pytest.raises(DataError, match=r"some are names \(found 0.5 and 'good'\)"):
        decided("good", 0.5)
    task = TASKS["seq_cls"].of(TaskSettings(name="seq_cls", labels=("0", "1", "bad")))
    odd = task.check([FORMATS["labelled"].example({"text": "a", "label": label}) for label in (0, 1, "bad")])
    assert odd == ["task.labels: some are numbers (0, 1) and some are names (bad)"]
