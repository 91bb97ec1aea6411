"""Runs as ONNX graphs: onnxruntime says and writes what torch does, and a file that does not is found out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import peftctl
from peftctl.errors import MachineError, UsageError, VerificationError
from peftctl.exporters import onnx as exporter
from peftctl.exporters import whole
from peftctl.exporters.contract import Job
from peftctl.exporters.export import Asked, export
from peftctl.onnx import usage
from peftctl.onnx.contract import Graph
from peftctl.onnx.decoder import Decoder
from peftctl.run import open_run
from tests import jobs, tiny
from tests.integration import test_feature_extraction as embeddings
from tests.integration import test_question_answering as answers
from tests.integration import test_seq2seq as writers
from tests.integration import test_tasks as tasks

Ran = Callable[..., tuple[dict[str, Any], str]]
STEP = {"epochs": 1, "batch_size": 32, "learning_rate": 1e-2}
ENDS = 258
TEXT = "The old red cat"  # as the cards have it


def exported(run: Path, folder: Path) -> dict[str, Any]:
    return export(open_run(run), folder, Asked("onnx"))


def session(folder: Path, name: str = "model") -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])


def small_bert(folder: Path) -> None:
    """Where the tests of tasks look for their model, one of a single layer: every layer takes a second to trace."""
    tiny.save(folder / "bert", tiny.encoder("bert", num_hidden_layers=1))
    tiny.wordpieces(tasks.WORDS).save_pretrained(folder / "bert")


def snippet(folder: Path) -> str:
    """The one piece of Python in the card."""
    _, *pieces = (folder / "README.md").read_text().split("```python\n")
    (piece,) = pieces
    return piece.partition("```\n")[0]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ran:
    """Runs Python in a folder: the names that it leaves, and what it prints."""

    def run(folder: Path, code: str = "") -> tuple[dict[str, Any], str]:
        left: dict[str, Any] = {}
        capsys.readouterr()
        with monkeypatch.context() as here:
            here.chdir(folder)
            exec(code or snippet(folder), left)
        return left, capsys.readouterr().out

    return run


def shapes(graph: Any) -> dict[str, list[Any]]:
    return {each.name: each.shape for each in graph.get_inputs()}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> tuple[Path, Path, Any]:
    """A run of LoRA, what it is exported to, and the manifest of that."""
    folder = tmp_path_factory.mktemp("llama")
    run, _ = jobs.train(folder, tiny_model, train=STEP)
    return run, folder / "out", exported(run, folder / "out")


def greedy(graph: Any, prompt: Sequence[int], most: int = 16) -> list[int]:
    """The likeliest token each time, as a program without transformers would do it."""
    names = [each.name for each in graph.get_outputs()]
    past = {
        name: np.zeros((1, shape[1], 0, shape[3]), np.float32)
        for name, shape in shapes(graph).items()
        if name.startswith("past_key_values.")
    }
    seen, ids, written = 0, list(prompt), []
    for _ in range(most):
        given = {
            "input_ids": np.array([ids]),
            "attention_mask": np.ones((1, seen + len(ids)), np.int64),
            "position_ids": np.arange(seen, seen + len(ids))[None],
        }
        said = dict(zip(names, graph.run(None, {**given, **past}), strict=True))
        past = {name: said[name.replace("past_key_values", "present")] for name in past}
        seen, ids = seen + len(ids), [int(said["logits"][0, -1].argmax())]
        written += ids
    return written


def test_a_decoder_writes_with_its_cache_what_the_run_does(llama: tuple[Path, Path, Any]) -> None:
    run, out, facts = llama
    assert facts["verified"] == "yes"
    assert facts["max_difference"] <= 1e-4
    assert [rows for rows, _ in facts["shapes"]] == [1, 3, 2]
    assert facts["generated"]["texts"] == 3
    assert facts["merged"]["how"]["dtype"] == "float32"
    graph = session(out)
    assert shapes(graph)["past_key_values.1.value"] == ["batch_size", 2, "past_sequence_length", 8]
    loaded = peftctl.load(run)
    prompt = loaded.ids("The tide went out")
    wanted = loaded.model.generate(
        input_ids=torch.tensor([prompt]), max_new_tokens=16, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert greedy(graph, prompt) == wanted[0, len(prompt) :].tolist()


def test_what_stands_beside_is_all_that_the_next_program_takes(llama: tuple[Path, Path, Any]) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    _, out, _ = llama
    assert AutoConfig.from_pretrained(out).model_type == "llama"
    assert json.loads((out / "config.json").read_text())["dtype"] == "float32"
    assert AutoTokenizer.from_pretrained(out).chat_template == tiny.CHATML
    assert GenerationConfig.from_pretrained(out).eos_token_id == ENDS
    card = (out / "README.md").read_text()
    assert "| attention_mask | int64 | batch_size, total_sequence_length |" in card
    assert "| past_key_values.0.key | float32 | batch_size, 2, past_sequence_length, 8 |" in card
    assert "- attention_mask is 1 for tokens and 0 for padding, over past and new tokens" in card
    assert "- position_ids are the place of each new token in its text" in card
    assert "sentence_embedding" not in card


def test_the_card_of_a_decoder_writes_what_the_run_answers_and_goes_on_with(
    llama: tuple[Path, Path, Any], ran: Ran
) -> None:
    run, out, _ = llama
    loaded, code = peftctl.load(run), snippet(out)
    left, printed = ran(out)
    assert printed == loaded.generate([{"role": "user", "content": TEXT}], max_new_tokens=20) + "\n"
    assert len(set(left["written"])) > 2
    left, printed = ran(out, code.replace("# ids =", "ids ="))
    assert printed == loaded.generate(TEXT, max_new_tokens=20) + "\n"
    assert left["length"] < len(loaded.ids(TEXT)) + 20  # which the message and its template are longer than


def test_weights_are_beside_the_graph_once_and_no_path_is_in_it(llama: tuple[Path, Path, Any]) -> None:
    from safetensors import safe_open

    run, out, _ = llama
    with safe_open(Path(open_run(run).recipe.model.name) / "model.safetensors", "pt") as base:
        weights = sum(base.get_tensor(name).numel() for name in base.keys())  # noqa: SIM118  # it is no mapping
    # Tensors of up to 256 bytes stay in the graph.
    assert 0.99 * 4 * weights <= (out / "model.onnx.data").stat().st_size <= 1.01 * 4 * weights
    assert str(Path(peftctl.__file__).parent).encode() not in (out / "model.onnx").read_bytes()
    assert b"site-packages" not in (out / "model.onnx").read_bytes()


def again(llama: tuple[Path, Path, Any], folder: Path) -> tuple[Job, exporter.Written]:
    """The export as it is just before it is checked."""
    run, out, _ = llama
    made = Job(open_run(run), folder / "out", folder / "scratch", "", None, lambda _: None)
    shutil.copytree(out, made.folder)
    made.scratch.mkdir()
    return made, exporter.Written(Decoder(), whole.make(made, "float32").folder, ("model",), {})


def test_a_broken_file_is_found_out(llama: tuple[Path, Path, Any], tmp_path: Path) -> None:
    made, written = again(llama, tmp_path)
    assert exporter.EXPORTER.verify(made, written)["verified"] == "yes"
    data = made.folder / "model.onnx.data"
    weights = np.fromfile(data, np.float32)
    weights[len(weights) // 2] += 2.0
    weights.tofile(data)
    with pytest.raises(
        VerificationError, match=r"^logits.* of rows of \d×\d+ differ from torch's by .*nothing was publ"
    ):
        exporter.EXPORTER.verify(made, written)
    data.unlink()
    with pytest.raises(VerificationError, match=r"model.onnx cannot be opened by onnxruntime"):
        exporter.EXPORTER.verify(made, written)


def test_a_text_that_parts_from_torchs_is_found_out(
    llama: tuple[Path, Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, written = again(llama, tmp_path)
    right = Decoder.greedy
    monkeypatch.setattr(Decoder, "greedy", lambda self, files, prompt, *rest: right(self, files, prompt[:-1], *rest))
    with pytest.raises(VerificationError, match=r"what the file writes differs .* from token \d+ on"):
        exporter.EXPORTER.verify(made, written)


def test_another_family_and_a_trained_model_itself(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "gpt2", tiny.gpt2())
    run, _ = jobs.train(tmp_path, base, method={"name": "full"}, train=STEP, model={"dtype": "bfloat16"})
    facts = exported(run, tmp_path / "out")
    assert facts["max_difference"] <= 1e-4
    assert facts["generated"]["tokens"] > 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


def test_one_text_read_another_written(tmp_path: Path, ran: Ran) -> None:
    tiny.save(tmp_path / "t5", tiny.writer("t5", num_layers=1, initializer_factor=3.0))  # by default it repeats itself
    run, _ = writers.train(tmp_path, "t5", train=STEP)
    out = tmp_path / "out"
    facts = exported(run, out)
    assert facts["max_difference"] <= 1e-4
    reads, first, after = (session(out, name) for name in ("encoder_model", "decoder_model", "decoder_with_past_model"))
    loaded = peftctl.load(run)
    prompt = loaded.ids("a very old red cat")
    wanted = loaded.model.generate(
        input_ids=torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0].tolist()
    mask = np.ones((1, len(prompt)), np.int64)
    (hidden,) = reads.run(None, {"input_ids": np.array([prompt]), "attention_mask": mask})
    given: dict[str, Any] = {"encoder_hidden_states": hidden, "encoder_attention_mask": mask}
    graph, written = first, wanted[:1]
    for _ in range(8):
        given["input_ids"] = np.array([written[-1:]])
        names = [each.name for each in graph.get_outputs()]
        said = dict(zip(names, graph.run(None, {name: given[name] for name in shapes(graph)}), strict=True))
        given |= {name.replace("present", "past_key_values"): values for name, values in said.items()}
        graph = after
        written.append(int(said["logits"][0, -1].argmax()))
    assert written == wanted
    left, printed = ran(out)
    assert printed == loaded.generate(TEXT, max_new_tokens=20) + "\n"
    assert len(set(left["written"])) > 2


@pytest.mark.parametrize("rows", ["single", "tags"])
def test_classes_are_those_of_the_run(tmp_path: Path, rows: str, ran: Ran) -> None:
    small_bert(tmp_path)
    run = tasks.train(tmp_path, "bert", rows, train=STEP)
    exported(run, tmp_path / "out")
    loaded = peftctl.load(run)
    inputs = loaded.collate(loaded.held_out().rows.encoded[:5])["inputs"]
    graph = session(tmp_path / "out")
    assert list(shapes(graph)) == ["input_ids", "attention_mask", "token_type_ids"]
    (found,) = graph.run(None, {name: values.numpy() for name, values in inputs.items()})
    with torch.no_grad():
        wanted = loaded.model.eval()(**inputs).logits.numpy()
    seen = inputs["attention_mask"].numpy().astype(bool) if rows == "tags" else ...
    assert np.abs(found[seen] - wanted[seen]).max() <= 1e-4
    left, printed = ran(tmp_path / "out")
    with torch.no_grad():
        wanted = loaded.model(**loaded.tokenizer(TEXT, return_tensors="pt")).logits.numpy()
    assert printed == f"{left['said']['logits']}\n"
    assert (left["said"]["logits"].argmax(-1) == wanted.argmax(-1)).all()
    assert np.abs(left["said"]["logits"] - wanted).max() <= 1e-4
    labels = json.loads((tmp_path / "out" / "config.json").read_text())["id2label"]
    named = ", ".join(f"{number} {label}" for number, label in labels.items())
    assert f"stand the labels (id2label in config.json): {named}." in (tmp_path / "out" / "README.md").read_text()
    assert set(labels.values()) == ({"O", "B-NAME", "I-NAME"} if rows == "tags" else set(tasks.ANIMALS))


def test_answers_are_those_of_the_run(tmp_path: Path, ran: Ran) -> None:
    small_bert(tmp_path)
    run, _ = answers.train(tmp_path, answers.questions(), train=STEP)
    exported(run, tmp_path / "out")
    loaded = peftctl.load(run)
    inputs = loaded.collate(loaded.held_out().rows.encoded[:5])["inputs"]
    found = session(tmp_path / "out").run(
        ["start_logits", "end_logits"], {name: values.numpy() for name, values in inputs.items()}
    )
    with torch.no_grad():
        said = loaded.model.eval()(**inputs)
    seen = inputs["attention_mask"].numpy().astype(bool)
    for one, other in zip(found, (said.start_logits, said.end_logits), strict=True):
        assert np.abs(one - other.numpy())[seen].max() <= 1e-4
    left, printed = ran(tmp_path / "out")
    with torch.no_grad():
        wanted = loaded.model(**loaded.tokenizer("Which cat is it?", TEXT, return_tensors="pt"))
    assert printed == f"{left['said']['start_logits']}\n"
    for name in ("start_logits", "end_logits"):
        assert left["said"][name].argmax() == wanted[name].argmax()
        assert np.abs(left["said"][name] - wanted[name].numpy()).max() <= 1e-4


@pytest.mark.parametrize(("kind", "pooling"), [("bert", "mean"), ("llama", "last")])
def test_an_embedding_is_the_one_that_the_run_was_measured_with(
    tmp_path: Path, kind: str, pooling: str, ran: Ran
) -> None:
    small_bert(tmp_path)
    task = {**embeddings.NAME, "pooling": pooling}
    run, _ = embeddings.train(tmp_path, embeddings.pairs(40), kind, task=task, train=STEP)
    exported(run, tmp_path / "out")
    loaded = peftctl.load(run)
    passes = loaded.collate(loaded.held_out().rows.encoded[:5])["inputs"]
    graph = session(tmp_path / "out")
    for inputs in passes:
        given = {name: inputs.get(name, torch.zeros_like(inputs["input_ids"])).numpy() for name in shapes(graph)}
        hidden, found = graph.run(["last_hidden_state", "sentence_embedding"], given)
        with torch.no_grad():
            wanted = loaded.collate.task.outputs(loaded.model.eval(), [inputs]).numpy()
        assert np.abs(found - wanted).max() <= 1e-4
        lengths = given["attention_mask"].sum(1)
        ends = {"mean": lambda row, end: row[:end].mean(0), "last": lambda row, end: row[end - 1]}
        pooled = np.stack([ends[pooling](row, end) for row, end in zip(hidden, lengths, strict=True)])
        assert np.abs(found - pooled / np.linalg.norm(pooled, axis=1, keepdims=True)).max() <= 1e-5
    left, printed = ran(tmp_path / "out")
    given = loaded.tokenizer(TEXT, return_tensors="pt")
    with torch.no_grad():
        wanted = loaded.collate.task.outputs(loaded.model, [{name: given[name] for name in passes[0]}]).numpy()
    assert printed == f"{left['said']['sentence_embedding']}\n"
    assert np.abs(left["said"]["sentence_embedding"] - wanted).max() <= 1e-4
    assert "of length 1. Rows are padded on the right" in (tmp_path / "out" / "README.md").read_text()


class Ends:
    """A tokenizer of letters, with a beginning and an end around every text."""

    chat_template, bos_token_id, eos_token_id = None, 1, 2

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [ord(letter) for letter in text]
        return {"input_ids": [1, *ids, 2] if add_special_tokens else ids}


def test_a_card_says_and_feeds_what_the_graph_has() -> None:
    inputs = {name: torch.zeros(2, 3, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    past = {"past_key_values.0.key": torch.zeros(2, 1, 3, 4)}
    graph = Graph("model", lambda *_: (), inputs | past, {}, ("logits", "present.0.key"))
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[7]))
    code = usage.code([graph], model, Ends())
    compile(code, "README.md", "exec")
    assert "position_ids" not in code + "".join(usage.notes(graph))
    assert "if ids.item() in {2, 7}:" in code
    assert f'ids = tokenizer("{TEXT}", return_tensors="np")["input_ids"][:, :-1]\n' in code
    once = Graph("model", graph.compute, inputs, {}, ("logits",))
    assert list(usage.notes(once)) == ["attention_mask is 1 for tokens and 0 for padding."]


def test_what_cannot_be_merged_is_refused_before_weights_are_read(tmp_path: Path, tiny_model: Path) -> None:
    run, _ = jobs.train(tmp_path, tiny_model, method={"name": "prompt_tuning"}, train=STEP)
    with pytest.raises(UsageError, match=r"prompt_tuning cannot be merged"):
        exported(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_that_no_graph_stands_for_is_refused_before_it_is_merged(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = jobs.train(tmp_path, tiny_model, train=STEP)
    monkeypatch.setattr(exporter, "unfit", lambda *_: "llama models are none")
    monkeypatch.setattr(whole, "make", lambda *_: pytest.fail("it was merged"))
    with pytest.raises(UsageError, match=r"run: cannot be exported to ONNX: llama models are none\nhint: transformers"):
        exported(run, tmp_path / "out")


def test_what_torch_cannot_export_says_of_which_model(tmp_path: Path) -> None:
    from transformers import MptConfig, MptForCausalLM

    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_heads": 4, "n_layers": 1, "max_seq_len": 256, "vocab_size": 264}
    base = tiny.save(tmp_path / "mpt", MptForCausalLM(MptConfig(**sizes)))
    run, _ = jobs.train(tmp_path, base, train=STEP)
    with pytest.raises(MachineError, match=r"torch.onnx.export makes no graph of a mpt model \(MptForCausalLM\): \w"):
        exported(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
