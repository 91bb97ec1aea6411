"""GGUF files, loaded in llama.cpp and compared: every family, what is refused, and what a run leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from peftctl.errors import MachineError, UsageError, VerificationError
from peftctl.exporters import export as exporting
from peftctl.exporters import gguf_whole, ollama
from peftctl.exporters.export import Asked, export
from peftctl.gguf import compare, convert, families, modelfile, texts, writer
from peftctl.run import open_run
from tests import jobs, tiny
from tests.unit import gguf_models


def loaded(folder: Path) -> convert.Source:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder)
    return convert.Source(folder, config, tokenizer, (tokenizer.eos_token_id,), {"name": "tiny"})


def compared(source: convert.Source, path: Path, scratch: Path, type_: str = "f32") -> Mapping[str, Any]:
    """The figures of a file beside the model that it was made of."""
    import torch
    from transformers import AutoModelForCausalLM

    convert.convert(source, path, type_, lambda _: None)
    asked = compare.asked(source.tokenizer, source.ends, convert.check(source.config, source.tokenizer).form)
    model = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32).eval()
    allowed = compare.tolerance(type_, families.family(source.config), source.config.num_hidden_layers)
    file = compare.File(path, type_, allowed)
    return compare.check(file, source.tokenizer, asked, lambda: compare.said(model, asked), scratch)


@pytest.mark.every
@pytest.mark.parametrize("name", gguf_models.MODELS)
def test_a_model_of_each_family_gives_the_same_logits_tokens_and_texts_in_llama_cpp(tmp_path: Path, name: str) -> None:
    source = loaded(gguf_models.save(tmp_path / "model", name))
    found = compared(source, tmp_path / "model.gguf", tmp_path)
    assert found["positions"] == 200
    # llama.cpp takes GELU from a table in float16: of two tokens as likely as each other the other one may win.
    rounded = families.family(source.config).activation.startswith("gelu")
    assert found["top1"] >= (0.98 if rounded else 1.0)
    assert found["kl"] < 1e-6
    assert found["texts_tokenised"] > 200
    assert found["texts_written"] == 2
    assert rounded or found["texts_the_same"] == 2


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("smollm", {"interleaved": False}),
        ("qwen2", {"interleaved": True}),
        ("gemma2", {"norm_offset": 0.0}),
        ("gemma3", {"windows": False}),
    ],
)
def test_a_wrong_conversion_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: dict[str, Any]
) -> None:
    kind = gguf_models.MODELS[name][0]
    monkeypatch.setattr(families, "FAMILIES", {kind: replace(families.FAMILIES[kind], **change)})
    source = loaded(gguf_models.save(tmp_path / "model", name))
    with pytest.raises(VerificationError, match=r"logits differ by|does not take what was written"):
        compared(source, tmp_path / "model.gguf", tmp_path)


def test_a_file_that_llama_cpp_cannot_load_ends_in_its_own_words(tmp_path: Path) -> None:
    source = loaded(gguf_models.save(tmp_path / "model", "smollm"))
    convert.convert(source, tmp_path / "model.gguf", "f32", lambda _: None)
    data = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "model.gguf").write_bytes(data[: len(data) // 2])
    asked = compare.asked(source.tokenizer, source.ends, "")
    with pytest.raises(VerificationError, match=r"does not take what was written .*error loading model") as why:
        compare.check(compare.File(tmp_path / "model.gguf", "f32", 1.0), source.tokenizer, asked, None, tmp_path)
    assert "Traceback" not in str(why.value)
    assert "File " not in str(why.value)


@pytest.mark.parametrize(("name", "called"), [("smollm", "smollm-from-phi3-data"), ("phi3", "fi"), ("phi3", "PHI-3 b")])
def test_a_name_in_which_llama_cpp_reads_something_changes_nothing(tmp_path: Path, name: str, called: str) -> None:
    source = replace(loaded(gguf_models.save(tmp_path / "model", name)), about={"name": called})
    convert.convert(source, tmp_path / "model.gguf", "f16", lambda _: None)
    asked = compare.asked(source.tokenizer, source.ends, "")
    found = compare.check(compare.File(tmp_path / "model.gguf", "f16", 1.0), source.tokenizer, asked, None, tmp_path)
    assert found["texts_tokenised"] > 200


def test_tokens_that_end_a_text_and_the_template_are_looked_for(tmp_path: Path) -> None:
    source = loaded(gguf_models.save(tmp_path / "model", "smollm"))
    convert.convert(source, tmp_path / "model.gguf", "f32", lambda _: None)
    file = compare.File(tmp_path / "model.gguf", "f32", 1.0)
    asked = compare.asked(source.tokenizer, [source.tokenizer.convert_tokens_to_ids("<tool>")], "")
    with pytest.raises(VerificationError, match="does not stop at <tool>"):
        compare.check(file, source.tokenizer, asked, None, tmp_path)
    source.tokenizer.chat_template = tiny.CHATML + " "
    asked = compare.asked(source.tokenizer, source.ends, "")
    with pytest.raises(VerificationError, match="the chat template in the file is not the tokenizer's"):
        compare.check(file, source.tokenizer, asked, None, tmp_path)


def test_the_texts_hold_every_kind_and_at_least_200() -> None:
    tokenizer = gguf_models.tokenizer("smollm")
    found = texts.tricky(tokenizer)
    assert len(set(found)) > 200
    assert any("<|im_end|>" in text for text in found)


# Runs


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gguf_models.save(tmp_path_factory.mktemp("base") / "model", "smollm")


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"name": "lora", "rank": 4},
    "rslora": {"name": "lora", "rank": 4, "rslora": True},
    "dora": {"name": "lora", "rank": 4, "dora": True},
    "patterns": {"name": "lora", "rank": 4, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"v_proj": 3.0}},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, base: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {name: jobs.train(folder, base, name, method=method)[0] for name, method in METHODS.items()}


@pytest.mark.parametrize("name", METHODS)
def test_what_a_run_left_is_the_same_model_in_llama_cpp(tmp_path: Path, runs: dict[str, Path], name: str) -> None:
    facts = export(open_run(runs[name]), tmp_path / "out", Asked("gguf", "f32"))
    assert (facts["verified"], facts["llama_cpp"]["top1"]) == ("yes", 1.0)
    assert facts["merged"]["verified"] == "yes"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "manifest.json", "model.gguf"]


@pytest.mark.parametrize("name", ["lora", "rslora", "patterns"])
def test_an_adapter_by_itself_is_the_same_on_its_base_in_llama_cpp(
    tmp_path: Path, runs: dict[str, Path], name: str
) -> None:
    facts = export(open_run(runs[name]), tmp_path / "out", Asked("gguf-lora"))
    assert (facts["verified"], facts["llama_cpp"]["top1"]) == ("yes", 1.0)
    assert facts["llama_cpp"]["kl"] < 1e-6


@pytest.mark.parametrize("type_", ["f16", "adapter"])
def test_ollama_gets_a_modelfile_that_says_template_and_stops(
    tmp_path: Path, runs: dict[str, Path], type_: str
) -> None:
    facts = export(open_run(runs["lora"]), tmp_path / "out", Asked("ollama", type_))
    assert facts["verified"] == "yes"
    assert facts["template"] == {"verified": "no", "reason": ollama.UNCHECKED}
    said = modelfile.read((tmp_path / "out" / "Modelfile").read_text())
    assert said.parameters == (("stop", "<|im_end|>"),)
    assert "{{ range .Messages }}" in said.template
    assert (said.model, said.adapter) == (("./model.gguf", "") if type_ == "f16" else ("./base.gguf", "./adapter.gguf"))
    assert (tmp_path / "out" / said.model).exists()


def test_what_no_adapter_file_can_hold_is_refused_with_what_to_do(tmp_path: Path, runs: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"have no place for use_dora(?s:.)*--to gguf"):
        export(open_run(runs["dora"]), tmp_path / "out", Asked("gguf-lora"))
    assert not (tmp_path / "out").exists()


def test_a_wrong_scale_in_an_adapter_is_found_out(
    tmp_path: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from peftctl.gguf import lora

    monkeypatch.setattr(lora, "_scale", lambda config, module, rank: 8.0 / rank)
    with pytest.raises(VerificationError, match="logits differ by"):
        export(open_run(runs["rslora"]), tmp_path / "out", Asked("gguf-lora"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("type_", ["bf16", "q8_0", "q4_k_m"])
def test_other_types_of_numbers_are_told(tmp_path: Path, runs: dict[str, Path], type_: str) -> None:
    said: list[str] = []
    facts = export(open_run(runs["lora"]), tmp_path / "out", Asked("gguf", type_.upper()), said.append)
    assert facts["verified"] == "yes"
    assert said[-1].startswith(f"beside transformers in float32: KL {facts['llama_cpp']['kl']:.2g}, the same likeliest")
    card = (tmp_path / "out" / "README.md").read_text()
    if type_ != "bf16":  # rows of 64 numbers are none for q4_k, which takes 256 at once
        kinds = ", ".join(f"{count} {kind}" for kind, count in facts["matrices"].items())
        assert f"as llama.cpp's quantiser made them: {kinds}." in card
        assert set(facts["matrices"]) == ({"q8_0"} if type_ == "q8_0" else {"q5_0", "q8_0"})
    assert ("before_quantising" in facts) == (type_ != "bf16")
    assert facts["llama_cpp"]["kl"] > 1e-5
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"README.md", "manifest.json", "model.gguf"}


def test_a_number_written_wrong_is_found_out_and_nothing_is_left(
    tmp_path: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writer.rows_of

    def wrong(tensor: Any, weights: Any) -> Any:
        for rows in real(tensor, weights):
            yield rows * (1.5 if tensor.name == "blk.1.ffn_down.weight" else 1.0)

    monkeypatch.setattr(writer, "rows_of", wrong)
    with pytest.raises(VerificationError, match="logits differ by"):
        export(open_run(runs["lora"]), tmp_path / "out", Asked("gguf", "f32"))
    assert list(tmp_path.iterdir()) == []


def test_unchecked_is_said_and_what_is_not_there_to_check_with_is_named(
    tmp_path: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"checked with llama_cpp, which is not installed(?s:.)*peftctl\[gguf\]"):
        export(open_run(runs["lora"]), tmp_path / "out", Asked("gguf"))
    with pytest.raises(MachineError, match="onnx is written with onnx, which is not installed") as refused:
        export(open_run(runs["lora"]), tmp_path / "out", Asked("onnx", verify=False))
    assert refused.value.hint == "pip install 'peftctl[onnx]'"
    facts = export(open_run(runs["lora"]), tmp_path / "out", Asked("gguf", verify=False))
    assert (facts["verified"], facts["reason"]) == ("no", "--no-verify")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["verify"] is False


def test_a_model_too_large_to_compare_is_not_called_verified(
    tmp_path: Path, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_whole.merged, "fits", lambda folder: False)
    facts = export(open_run(runs["lora"]), tmp_path / "out", Asked("gguf"))
    assert facts["verified"] == "no"
    assert "logits were not compared" in facts["reason"]
    assert facts["llama_cpp"]["texts_tokenised"] > 200


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (tiny.gpt2, "gpt2 was not seen to work in llama.cpp"),
        (lambda: tiny.llama(hidden_act="relu"), "hidden_act is relu in this model, and silu in llama.cpp's code"),
        (lambda: tiny.llama(rope_parameters=DYNAMIC), "positions are scaled by 'dynamic', which llama.cpp has not"),
        (tiny.llama, "splits text in a way that has no name in llama.cpp"),
    ],
)
def test_a_base_that_llama_cpp_has_nothing_for_is_refused_before_weights_are_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Any, said: str
) -> None:
    run, _ = jobs.train(tmp_path, tiny.save(tmp_path / "base", model()))
    monkeypatch.setattr(gguf_whole.whole, "make", lambda *_: pytest.fail("it went on"))
    for to in ("gguf", "gguf-lora"):
        with pytest.raises(UsageError, match=re.escape(said)):
            export(open_run(run), tmp_path / "out", Asked(to))
        assert not (tmp_path / "out").exists()
