"""Runs as vLLM serves them: folders that transformers and peft load, with the command, or why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import peftctl
from peftctl.errors import UsageError, VerificationError
from peftctl.exporters import whole
from peftctl.exporters.export import Asked, export
from peftctl.merge import stream
from peftctl.run import open_run
from tests import jobs, tiny

ENDS = 258  # <|im_end|>, of tiny's tokenizer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return jobs.train(tmp_path_factory.mktemp("vllm"), tiny_model, method={"rank": 20})[0]


def exported(run: Path, out: Path, type_: str | None = None, **asked: Any) -> dict[str, Any]:
    return export(open_run(run), out, Asked("vllm", type_, **asked))


def refused(run: Path, out: Path, type_: str, **asked: Any) -> str:
    with pytest.raises(UsageError) as caught:
        exported(run, out, type_, **asked)
    assert not out.exists()
    return str(caught.value)


def command(out: Path) -> str:
    card = (out / "README.md").read_text()
    return card.split("```bash\n")[1].split("\n```")[0]


def test_merged_is_what_is_written_unasked_and_transformers_loads_it(run: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = exported(run, tmp_path / "out")
    assert (facts["type"], facts["verified"], facts["reason"]) == ("merged", "no", "vLLM is not installed here")
    assert facts["folder"] == "yes, loaded by transformers: logits compared with base and adapter"
    assert command(tmp_path / "out") == facts["serve"] == "vllm serve path/to/this/folder"
    assert facts["architecture"] == "LlamaForCausalLM"
    loaded = peftctl.load(run)
    ids = torch.tensor([AutoTokenizer.from_pretrained(tmp_path / "out")("is 5 odd?")["input_ids"]])
    with torch.no_grad():
        served = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(ids).logits
        assert torch.allclose(served, loaded.model(input_ids=ids).logits, atol=1e-5)


def test_an_adapter_is_the_run_s_with_the_command_that_serves_it(run: Path, tmp_path: Path, tiny_model: Path) -> None:
    facts = exported(run, tmp_path / "out", "adapter")
    assert facts["folder"].startswith("yes, loaded by transformers: every byte")
    assert (facts["rank"], "needs" in facts) == (20, False)
    assert (
        command(tmp_path / "out")
        == facts["serve"]
        == (
            f"vllm serve {tiny_model} --enable-lora --lora-modules run=path/to/this/folder --max-lora-rank 32 "
            "--chat-template path/to/this/folder/chat_template.jinja"
        )
    )
    for file in (run / "adapter").iterdir():
        assert file.name == "README.md" or (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
    assert "stop_token_ids" not in (tmp_path / "out" / "README.md").read_text()


def test_a_rank_that_vllm_takes_unasked_needs_no_flag(tmp_path: Path, tiny_model: Path) -> None:
    run, _ = jobs.train(tmp_path, tiny_model, method={"rank": 16})
    assert "--max-lora-rank" not in exported(run, tmp_path / "out", "adapter")["serve"]


def test_an_end_that_only_training_knows_is_told(tmp_path: Path, run: Path, tiny_model: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    for name in ("config.json", "generation_config.json"):
        said = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**said, "eos_token_id": 256}))
    said = json.loads((base / "tokenizer_config.json").read_text())
    (base / "tokenizer_config.json").write_text(json.dumps({**said, "eos_token": "<|end|>"}))
    facts = exported(run, tmp_path / "out", "adapter", base=base)
    assert facts["serve"].startswith(f"vllm serve {base} ")
    assert f'"stop_token_ids": [{ENDS}]' in (tmp_path / "out" / "README.md").read_text()


def test_several_ranks_need_a_version_that_reads_them(tmp_path: Path, tiny_model: Path) -> None:
    method = {"rank": 4, "rank_pattern": {"q_proj": 40}, "rslora": True}
    run, _ = jobs.train(tmp_path, tiny_model, method=method)
    facts = exported(run, tmp_path / "out", "adapter")
    assert (facts["needs"], facts["rank"]) == ("vllm>=0.33.0", 40)
    assert "--max-lora-rank 64" in facts["serve"]
    assert "vLLM 0.33.0 or later" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"dora": True}, "refuses DoRA"),
        ({"modules_to_save": ["norm"]}, "trained whole"),
        ({"trainable_tokens": [257]}, "trainable_tokens"),
        ({"lora_bias": True}, "lora_bias"),
        ({"name": "loha", "rank": 4}, "the method LOHA; allowed: LORA"),
        ({"name": "prompt_tuning"}, "the method PROMPT_TUNING"),
    ],
    ids=str,
)
def test_adapters_that_vllm_refuses_are_refused_before_weights_are_read(
    tmp_path: Path, tiny_model: Path, method: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = jobs.train(tmp_path, tiny_model, method=method)
    text = refused(run, tmp_path / "out", "adapter")
    assert said in text
    merges = method.get("name") != "prompt_tuning" and not method.get("lora_bias")
    assert ("--type merged" in text) == (method.get("name") != "prompt_tuning")
    if merges:
        assert exported(run, tmp_path / "out")["folder"].startswith("yes")
    elif method.get("name"):
        monkeypatch.setattr(stream, "write", lambda *_: pytest.fail("weights were read"))
        assert "cannot be merged" in refused(run, tmp_path / "out", "merged")


def test_a_base_whose_class_takes_no_adapters_is_merged_instead(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base", tiny.gpt2())
    run, _ = jobs.train(tmp_path, base)
    assert "any adapter on GPT2LMHeadModel" in refused(run, tmp_path / "out", "adapter")
    assert exported(run, tmp_path / "out")["architecture"] == "GPT2LMHeadModel"


def test_another_base_is_refused(tmp_path: Path, run: Path) -> None:
    other = tiny.save(tmp_path / "other", tiny.llama(seed=5))
    for type_ in ("adapter", "merged"):
        assert "not the base model this run was trained on" in refused(run, tmp_path / "out", type_, base=other)


def test_a_model_that_was_trained_whole_is_served_as_it_is(tmp_path: Path, tiny_model: Path) -> None:
    run, _ = jobs.train(tmp_path, tiny_model, method={"name": "full"})
    assert "--type merged" in refused(run, tmp_path / "no", "adapter")
    facts = exported(run, tmp_path / "out")
    assert facts["folder"].startswith("yes, loaded by transformers: every byte")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (run / "model" / "model.safetensors").read_bytes()


def test_tasks_with_a_head_are_served_merged_alone(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    rows = [{"text": f"it is {n}", "label": "odd" if n % 2 else "even"} for n in range(24)]
    tiny.jsonl(tmp_path / "train.jsonl", rows)
    run, _ = jobs.train(tmp_path, base, task="seq_cls")
    assert "whose head the base lacks" in refused(run, tmp_path / "out", "adapter")
    facts = exported(run, tmp_path / "out")
    assert facts["architecture"] == "LlamaForSequenceClassification"
    assert facts["serve"] == "vllm serve path/to/this/folder --runner pooling"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [facts["architecture"]]


def test_vectors_are_pooled_as_in_training(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "base")
    tiny.jsonl(tmp_path / "train.jsonl", [{"anchor": f"number {n}", "positive": f"{n} it is"} for n in range(24)])
    run, _ = jobs.train(tmp_path, base, task={"name": "feature_extraction", "pooling": "last"})
    facts = exported(run, tmp_path / "out")
    assert facts["serve"].endswith("""--pooler-config '{"seq_pooling_type": "LAST"}'""")
    assert "--convert embed" in facts["serve"]


def test_a_folder_that_is_not_what_the_run_published_is_not_published(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree

    def damaged(here: Path, there: Path, **options: Any) -> Any:
        made = copy(here, there, **options)
        (Path(there) / "tokenizer.json").write_text("{}")
        return made

    monkeypatch.setattr("shutil.copytree", damaged)
    with pytest.raises(VerificationError, match="nothing was published"):
        exported(run, tmp_path / "out", "adapter")
    assert not (tmp_path / "out").exists()


def test_no_weights_are_read_for_what_is_refused(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "make", lambda *_: pytest.fail("weights were read"))
    monkeypatch.setattr("peftctl.exporters.vllm_rules.OWN", frozenset())
    monkeypatch.setattr("transformers.LlamaForCausalLM.is_backend_compatible", lambda: False)
    monkeypatch.setattr("transformers.LlamaForCausalLM._can_set_attn_implementation", lambda: False)
    assert "it has no LlamaForCausalLM" in refused(run, tmp_path / "out", "merged")
