"""Runs of every method that merges, merged: the same bits as PEFT's own merge of the run as it is loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import peftctl
from peftctl.errors import MachineError, UsageError, VerificationError
from peftctl.exporters.export import Asked, export
from peftctl.merge import check, compare, memory, stream
from peftctl.merge.adapters import Combine
from peftctl.merge.merge import Options, merge
from peftctl.merge.source import combine, open_source
from peftctl.methods import METHODS
from peftctl.run import open_run
from peftctl.tables import table
from tests import jobs, tiny
from tests.integration import test_generic, test_methods
from tests.integration.test_merge import differing, tensors

MERGE = [name for name, seen in table("capabilities")["methods"].items() if seen["merges"] == "yes" and name != "full"]
IN_MEMORY = ("frod", "osf")


def train(folder: Path, base: Path, name: str, **sections: Any) -> Path:
    if name in test_methods.KINDS:
        return test_methods.train(folder, base, name, **sections)[0]
    rate = {"learning_rate": max(METHODS[name].learning_rate, 1e-2)}
    return test_generic.train(folder, base, name, train=rate, **sections)[0]


def merged(run: Path, out: Path, **options: Any) -> dict[str, Any]:
    return merge(open_source(run, None, lambda _: None), out, Options(**options))


def as_loaded(run: Path) -> dict[str, Any]:
    """What the run's model has in its own layers once PEFT has merged it, by name."""
    loaded = peftctl.load(run).model.merge_and_unload()
    return {name: parameter.detach() for name, parameter in loaded.named_parameters()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return train(tmp_path_factory.mktemp("merged"), tiny_model, "lora", data={"eval": {"path": "train.jsonl"}})


@pytest.mark.slow
@pytest.mark.parametrize("name", MERGE)
def test_every_method_s_run_is_merged_bit_for_bit_as_it_is_loaded(tmp_path: Path, tiny_model: Path, name: str) -> None:
    run = train(tmp_path, tiny_model, name)
    facts = merged(run, tmp_path / "out")
    assert facts["how"]["way"] == ("in memory" if name in IN_MEMORY else "layer by layer")
    found, wanted = tensors(tmp_path / "out"), as_loaded(run)
    assert found.keys() - wanted.keys() <= {"lm_head.weight"}  # which a tied model has no second name for
    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []


def test_the_folder_loads_by_itself_and_ends_where_training_ended(tmp_path: Path, run: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    facts = merged(run, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template == tiny.CHATML
    assert model.generation_config.eos_token_id == 258
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "is 5 odd?"}], return_tensors="pt",
                                        add_generation_prompt=True)  # fmt: skip
    loaded = peftctl.load(run)
    with torch.no_grad():
        assert torch.allclose(model(**ids).logits, loaded.model(**ids).logits, atol=1e-5)
    assert facts["checked"]["top1"] == 1.0
    assert facts["checked"]["loss_merged"] == pytest.approx(facts["checked"]["loss_of_adapter"], abs=1e-5)
    assert facts["files"].keys() >= {"config.json", "generation_config.json", "tokenizer.json", "README.md"}
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == json.loads(json.dumps(facts, default=str))
    assert "lora" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("model", [tiny.llama, tiny.gpt2], ids=["llama", "gpt2"])
def test_a_quantised_base_is_merged_into_as_training_saw_it_or_as_it_is_stored(
    tmp_path: Path, bits: int, model: Any
) -> None:
    base = tiny.save(tmp_path / "base", model())
    run = train(tmp_path, base, "lora", model={"quantization": {"bits": bits}})
    facts = merged(run, tmp_path / "seen")
    found = tensors(tmp_path / "seen")
    quantised = peftctl.load(run).model.get_base_model()
    plain = quantised.dequantize() if hasattr(quantised, "dequantize") else quantised
    assert facts["checked"]["relative_difference"] < (1e-5 if bits == 4 else 0.1)
    assert facts["how"]["onto"] == "the base's weights as training saw them"
    original = merged(run, tmp_path / "stored", original=True)
    assert original["checked"]["relative_difference"] > 10 * facts["checked"]["relative_difference"] or bits == 8
    kept = tensors(tmp_path / "stored")
    stored = tensors(base)
    name = next(name for name in stored if name.endswith(("up_proj.weight", "c_fc.weight")))
    update = kept[name] - stored[name]
    assert torch.allclose(found[name] - update, rounded(plain, name), atol=1e-6)


def rounded(model: Any, name: str) -> Any:
    """The weight that the quantised model computes with, less its adapter."""
    from peft.utils.integrations import dequantize_module_weight

    module = model.get_submodule(name.rpartition(".")[0])
    layer = module.get_base_layer() if hasattr(module, "get_base_layer") else module
    weight = dequantize_module_weight(layer)
    return weight.T if name.endswith("c_fc.weight") else weight


def test_adapters_are_merged_by_their_weights(tmp_path: Path, tiny_model: Path) -> None:
    runs = []
    for seed in (1, 2):
        folder = tmp_path / f"run-{seed}"
        folder.mkdir()
        runs.append(train(folder, tiny_model, "lora", train={"seed": seed}))
    opened = [(open_source(run, None, lambda _: None), weight) for run, weight in zip(runs, (0.7, 0.3), strict=True)]
    merge(combine(opened), tmp_path / "cat", Options(combine=Combine("cat")))
    base, found = tensors(tiny_model), tensors(tmp_path / "cat")
    parts = []
    for run in runs:
        merged(run, run.parent / "alone")
        parts.append(tensors(run.parent / "alone"))
    for name, value in base.items():
        wanted = value + 0.7 * (parts[0][name] - value) + 0.3 * (parts[1][name] - value)
        assert torch.allclose(found[name], wanted, atol=1e-6), name
    for how, density in (("linear", None), ("ties", 0.5), ("dare_linear", 0.5)):
        facts = merge(combine(opened), tmp_path / how, Options(combine=Combine(how, density)))
        assert facts["checked"]["changed"] == 14


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


# What is refused


def test_another_base_is_refused_and_taken_when_forced(tmp_path: Path, run: Path) -> None:
    other = tiny.save(tmp_path / "other", tiny.llama(seed=5))
    with pytest.raises(UsageError, match=r"not the base model this run was trained on(?s:.)*--force-base"):
        open_source(run, other, lambda _: None)
    facts = merge(open_source(run, other, lambda _: None, force=True), tmp_path / "out", Options())
    assert "not the base model" in facts["sources"]["base_forced"]
    wide = tiny.save(tmp_path / "wide", tiny.llama(hidden_size=64))
    with pytest.raises(UsageError, match="does not fit"):
        merge(open_source(run, wide, lambda _: None, force=True), tmp_path / "no", Options())
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning"])
def test_what_cannot_be_merged_is_refused_before_weights_are_read(
    tmp_path: Path, tiny_model: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(tmp_path, tiny_model, name)
    monkeypatch.setattr(stream, "write", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(UsageError, match=r"cannot be merged: it changes no weight(?s:.)*--to adapter"):
        open_source(run, None, lambda _: None)
    with pytest.raises(UsageError, match="cannot be merged"):
        export(open_run(run), tmp_path / "out", Asked("merged"))


def test_a_full_run_and_a_merged_model_are_models_already(tmp_path: Path, tiny_model: Path, run: Path) -> None:
    whole = train(tmp_path, tiny_model, "full")
    with pytest.raises(UsageError, match="trained the model itself"):
        open_source(whole, None, lambda _: None)
    facts = export(open_run(whole), tmp_path / "whole", Asked("merged"))
    assert facts["verified"] == "yes"
    assert tensors(tmp_path / "whole").keys() == tensors(whole / "model").keys()
    assert "## Training" in (tmp_path / "whole" / "README.md").read_text()
    with pytest.raises(UsageError, match=r"--base: has no effect on .*, which trained the model itself"):
        export(open_run(whole), tmp_path / "other", Asked("merged", base=tiny_model))
    with pytest.raises(UsageError, match=r"no adapter to export(?s:.)*--to merged"):
        export(open_run(whole), tmp_path / "other", Asked("adapter"))
    merged(run, tmp_path / "out")
    with pytest.raises(UsageError, match="a merged model already"):
        open_source(tmp_path / "out", None, lambda _: None)


def test_merging_again_does_nothing_and_something_else_is_not_overwritten(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = merged(run, tmp_path / "out")
    monkeypatch.setattr(stream, "write", lambda *_: pytest.fail("it was written again"))
    assert merged(run, tmp_path / "out") == json.loads(json.dumps(first, default=str))
    with pytest.raises(UsageError, match="exists already"):
        merged(run, tmp_path / "out", dtype="bfloat16")
    (tmp_path / "out" / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="exists already"):
        merged(run, tmp_path / "out")


def test_a_tensor_without_a_place_in_the_model_is_named(tmp_path: Path, run: Path, tiny_model: Path) -> None:
    adapter = copied(run / "adapter", tmp_path / "adapter")
    held = load_file(adapter / "adapter_model.safetensors")
    key = next(iter(held))
    save_file({**held, key.replace("layers.0", "layers.9"): held[key].clone()}, adapter / "adapter_model.safetensors")
    with pytest.raises(VerificationError, match=r"layers\.9.*no place in the model"):
        merge(open_source(adapter, tiny_model, lambda _: None), tmp_path / "out", Options())
    save_file({k: v for k, v in held.items() if k != key}, adapter / "adapter_model.safetensors")
    with pytest.raises(VerificationError, match=r"lacks .*that its config asks for"):
        merge(open_source(adapter, tiny_model, lambda _: None), tmp_path / "out", Options())


def test_numbers_that_are_not_finite_are_named_and_nothing_is_published(
    tmp_path: Path, run: Path, tiny_model: Path
) -> None:
    adapter = copied(run / "adapter", tmp_path / "adapter")
    held = load_file(adapter / "adapter_model.safetensors")
    save_file({key: torch.full_like(value, 1e30) for key, value in held.items()}, adapter / "adapter_model.safetensors")
    with pytest.raises(VerificationError, match="not finite"):
        merge(open_source(adapter, tiny_model, lambda _: None), tmp_path / "out", Options())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("where", ["a layer", "a tensor that was not trained"])
def test_what_was_written_wrong_is_found_and_nothing_is_published(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    write = stream.write

    def wrong(plan: Any, values: Any, folder: Path, most: int) -> None:
        write(plan, values, folder, most)
        name = "model.layers.1.mlp.up_proj.weight" if where == "a layer" else "model.norm.weight"
        with check.files(folder) as written:
            stored = written.stored[name]
        with stored.file.open("r+b") as file:
            file.seek(stored.start)
            file.write(b"\0\0\x40\x40" * 40)

    monkeypatch.setattr(stream, "write", wrong)
    monkeypatch.setattr(compare, "fits", lambda _: pytest.fail("it went on"))
    said = r"layers\.1\.mlp\.up_proj by" if where == "a layer" else r"model\.norm\.weight.*should not"
    with pytest.raises(VerificationError, match=said):
        merged(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_before_anything_is_written(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(stream, "write", lambda *_: pytest.fail("it was written"))
    with pytest.raises(MachineError, match="the merged model takes"):
        merged(run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_fit_is_compared_layer_by_layer(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available", lambda: 1000)
    facts = merged(run, tmp_path / "out")
    assert facts["checked"]["compared"] == "layers"
    assert facts["checked"]["layers"] == 14


def test_export_to_merged_is_the_same_merge(tmp_path: Path, run: Path) -> None:
    merged(run, tmp_path / "out")
    facts = export(open_run(run), tmp_path / "exported", Asked("merged"))
    assert facts["verified"] == "yes"
    assert differing(tensors(tmp_path / "exported"), tensors(tmp_path / "out")) == []
    with pytest.raises(UsageError, match="a merged model already"):
        open_source(tmp_path / "exported", None, lambda _: None)


# What users get wrong


def edited(adapter: Path, to: Path, **fields: Any) -> Path:
    made = copied(adapter, to)
    (made / "manifest.json").unlink(missing_ok=True)
    config = json.loads((made / "adapter_config.json").read_text())
    (made / "adapter_config.json").write_text(json.dumps({**config, **fields}))
    return made


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"peft_type": ["LORA"]}, "peft_type is .*which the installed peft does not have"),
        ({"r": "x"}, "does not fit"),
        ({"r": 8}, "does not fit .*size mismatch"),
        ({"lora_alpha": None}, "does not fit"),
        ({"target_modules": "(["}, "does not fit .*unterminated"),
        ({"target_modules": ["nope"]}, "does not fit .*nope"),
        ({"base_model_name_or_path": 5}, "is no text"),
        ({"task_type": "SEQ_CLS"}, "made for the task SEQ_CLS, and does not say its labels"),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_is_refused(
    tmp_path: Path, run: Path, tiny_model: Path, fields: dict[str, Any], said: str
) -> None:
    adapter = edited(run / "adapter", tmp_path / "adapter", **fields)
    with pytest.raises((UsageError, VerificationError), match=said):
        merge(open_source(adapter, None if "base_model_name_or_path" in fields else tiny_model, lambda _: None),
              tmp_path / "out", Options())  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_a_runs_adapter_stands_for_the_run_and_an_export_for_what_it_says(
    tmp_path: Path, run: Path, tiny_model: Path
) -> None:
    heard: list[str] = []
    source = open_source(run / "adapter", None, heard.append)
    assert source.run is not None
    assert heard == [f"{run / 'adapter'} is what {run} published, and is merged as that run"]
    export(open_run(run), tmp_path / "out", Asked("adapter"))
    other = tiny.save(tmp_path / "other", tiny.llama(seed=5))
    for path in (run / "adapter", tmp_path / "out"):
        assert open_source(path, tiny_model, print).forced == ""
        with pytest.raises(UsageError, match="is not the base model this run was trained on"):
            open_source(path, other, print)
        assert "is not the base model" in open_source(path, other, print, force=True).forced


@pytest.mark.parametrize("damage", [{"quantization": {"bits": 5}}, {"base": None}, {"base": {"files": {}}}])
def test_an_export_whose_manifest_is_damaged_is_refused(
    tmp_path: Path, run: Path, tiny_model: Path, damage: dict[str, Any]
) -> None:
    export(open_run(run), tmp_path / "out", Asked("adapter"))
    manifest = tmp_path / "out" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), **damage}))
    with pytest.raises(UsageError, match=r"manifest.json is damaged"):
        open_source(tmp_path / "out", tiny_model, print)


def test_what_does_not_add_up_is_not_combined(tmp_path: Path, run: Path, tiny_model: Path) -> None:
    plain = open_source(run, None, print)
    dora, _ = jobs.train(tmp_path, tiny_model, "dora", method={"name": "lora", "rank": 4, "dora": True})
    with pytest.raises(UsageError, match="is DoRA, whose magnitudes do not add up"):
        combine([(plain, 1.0), (open_source(dora, None, print), 1.0)])
    four, _ = jobs.train(tmp_path, tiny_model, "four", model={"dtype": "float32", "quantization": {"bits": 4}})
    with pytest.raises(UsageError, match="has another quantised base"):
        combine([(plain, 1.0), (open_source(four, None, print), 1.0)])
    with pytest.raises(UsageError, match="every weight is 0"):
        combine([(plain, 0.0), (plain, 0.0)])


@pytest.mark.parametrize("inside", ["run", "run/adapter", "base"])
def test_nothing_is_published_inside_what_is_merged(tmp_path: Path, run: Path, tiny_model: Path, inside: str) -> None:
    source = open_source(run, None, print)
    place = tiny_model if inside == "base" else run / inside.removeprefix("run").strip("/")
    with pytest.raises(UsageError, match="which is to be merged"):
        merge(source, place / "out", Options())
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UsageError, match="exists already"):
        merge(source, tmp_path / "link", Options())


def test_a_field_that_peft_does_not_know_is_told(tmp_path: Path, run: Path, tiny_model: Path) -> None:
    heard: list[str] = []
    open_source(copied(run / "adapter", tmp_path / "plain"), tiny_model, heard.append)
    assert heard == []
    open_source(edited(run / "adapter", tmp_path / "adapter", of_tomorrow=1), tiny_model, heard.append)
    assert ["does not know of_tomorrow" in text for text in heard] == [True]


@pytest.mark.parametrize("kept", [500, -500])
def test_files_that_are_cut_short_are_named_before_anything_is_written(
    tmp_path: Path, run: Path, tiny_model: Path, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "write", lambda *_: pytest.fail("it was written"))
    adapter, base = copied(run / "adapter", tmp_path / "adapter"), copied(tiny_model, tmp_path / "base")
    for folder, name in ((adapter, "adapter_model.safetensors"), (base, "model.safetensors")):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:kept])
        with pytest.raises(UsageError, match=rf"{name} is not? (whole|safetensors file)"):
            merge(open_source(adapter, base, lambda _: None), tmp_path / "out", Options())
        (folder / name).write_bytes(whole)


def test_a_base_without_a_tokenizer_is_refused_before_anything_is_written(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "write", lambda *_: pytest.fail("it was written"))
    adapter = copied(run / "adapter", tmp_path / "adapter")
    for file in (*adapter.glob("tokenizer*"), *adapter.glob("chat*")):
        file.unlink()
    base = tmp_path / "base"
    tiny.llama().save_pretrained(base)
    with pytest.raises(UsageError, match=r"the tokenizer of .* cannot be loaded"):
        merge(open_source(adapter, base, lambda _: None), tmp_path / "out", Options())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["RUN"], "merge takes RUN and OUT"),
        (["RUN", "OUT", "more"], "merge takes RUN and OUT"),
        (["OUT", "--adapter", "RUN:0.7"], "names one of several"),
        (["OUT", "--adapter", "RUN:x", "--adapter", "RUN"], "'x' is no weight"),
        (["OUT", "--adapter", "RUN:nan", "--adapter", "RUN"], "'nan' is no weight"),
        (["OUT", "--adapter", "RUN", "--adapter", "RUN", "--combine", "ties"], "needs --density"),
        (["OUT", "--adapter", "RUN", "--adapter", "RUN", "--density", "0.5"], "has no effect with cat"),
        (["RUN", "OUT", "--combine", "cat"], "has no effect on one adapter"),
        (["RUN", "OUT", "--shard-size", "0"], "has no unit"),
        (["RUN", "OUT", "--shard-size", "nanGB"], "no size"),
        (["RUN", "OUT", "--dtype", "bf16"], "did you mean bfloat16"),
        (["RUN", "OUT", "--onto", "original"], "whose base was not quantised"),
    ],
    ids=" ".join,
)
def test_words_that_will_not_do_are_refused(tmp_path: Path, run: Path, arguments: list[str], said: str) -> None:
    from typer.testing import CliRunner

    from peftctl.cli import app

    words = [word.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for word in arguments]
    result = CliRunner().invoke(app, ["merge", *words])
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "out").exists()
