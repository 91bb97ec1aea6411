"""Mixtures of adapters as whole runs: trained, published, loaded, gone on from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import peftctl
from peftctl.errors import RecipeError, UsageError
from peftctl.events import Events
from peftctl.model import load as loading
from peftctl.recipe import check, resolve
from peftctl.recipe import load as load_recipe
from peftctl.train import job
from tests import jobs, tiny

HELD_OUT = {"eval": {"path": "train.jsonl"}}
MIXED = {"name": "xlora", "adapters": ["odd", "shout"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and two LoRA runs on it that learned different things."""
    folder = tmp_path_factory.mktemp("made")
    base = tiny.save(folder / "base")
    jobs.train(folder, base, "odd", data=HELD_OUT, method={"targets": ["q_proj", "v_proj"]}, train={"epochs": 4})
    turns = [{"role": "user", "content": "say it"}, {"role": "assistant", "content": "HEY HEY HEY"}]
    tiny.jsonl(folder / "shout.jsonl", [{"messages": turns}] * 8)
    jobs.train(
        folder, base, "shout", data={"train": "shout.jsonl"}, method={"rank": 2, "targets": ["q_proj", "down_proj"]},
        train={"epochs": 8},
    )  # fmt: skip
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    shutil.copytree(made, tmp_path / "w")
    for run in ("odd", "shout"):  # their base is where it was
        assert json.loads((tmp_path / "w" / run / "manifest.json").read_text())["base"]["name"] == str(made / "base")
    return tmp_path / "w"


def mix(folder: Path, made: Path, name: str = "mixed", **sections: Any) -> tuple[Path, list[dict[str, Any]]]:
    settings = {**MIXED, **sections.pop("method", {})}
    train = {"epochs": 4, "learning_rate": 2e-2, **sections.pop("train", {})}
    return jobs.train(folder, made / "base", name, method=settings, train=train, **{"data": HELD_OUT, **sections})


def classifier(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "adapter" / "classifier.safetensors")


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_mixture_learns_is_verified_and_loads_without_the_runs_it_was_made_of(
    dtype: str, folder: Path, made: Path
) -> None:
    run, events = mix(folder, made, model={"dtype": dtype}, eval={"every": 1})
    facts = jobs.manifest(run)
    measured = [event["loss"] for event in events if event["event"] == "eval"]
    assert measured[-1] < measured[0] - 0.03
    assert facts["verified"]["reload"]["max_difference"] == 0.0
    assert facts["loads_with"] == "peftctl"
    assert "Plain peft cannot load it" in (run / "adapter" / "README.md").read_text()
    assert facts["trainable_parameters"] == next(e["trainable"] for e in events if e["event"] == "model") == 33 * 12
    assert {tensor.dtype for tensor in classifier(run).values()} == {torch.float32}
    for name in ("odd", "shout"):
        shutil.rmtree(folder / name)
    loaded = peftctl.load(run)
    assert loaded.held_out()(loaded.model) == pytest.approx(facts["metrics"], rel=1e-5 if dtype == "float32" else 1e-2)
    if dtype == "bfloat16":
        return
    plain = peftctl.load(made / "odd")
    with plain.base(), loaded.base():
        of_base = plain.held_out().of_base()(plain.model)["loss"]
        assert loaded.held_out().of_base()(loaded.model)["loss"] == pytest.approx(of_base, rel=1e-6)
    assert abs(facts["metrics"]["loss"] - of_base) > 0.1
    said = loaded.generate("odd even", max_new_tokens=6)
    ids = loaded.ids("odd even")
    prompt = len(ids)
    for _ in range(6):
        with torch.no_grad():
            best = int(loaded.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        ids = [*ids, best]
        if best == loaded.tokenizer.eos_token_id:
            break
    assert said == loaded.tokenizer.decode(ids[prompt:], skip_special_tokens=True)


@pytest.mark.slow
def test_a_mixture_is_the_same_from_run_to_run_and_from_its_resolved_recipe(folder: Path, made: Path) -> None:
    first, _ = mix(folder, made, method={"depth": 2, "hidden": 8})
    again, _ = mix(folder, made, "again", method={"depth": 2, "hidden": 8})
    (folder / "third.yaml").write_text((first / "resolved.yaml").read_text().replace("/mixed", "/third"))
    third = job.train(load_recipe(folder / "third.yaml"), "", Events())
    for other in (again, third):
        assert {k: v.tolist() for k, v in classifier(other).items()} == {
            k: v.tolist() for k, v in classifier(first).items()
        }


@pytest.mark.slow
def test_fast_paths_change_nothing_but_rounding(folder: Path, made: Path) -> None:
    seen = []
    for name, fast in (("fast", {}), ("slow", {"packed": False, "loss": False, "lora": False, "norm": False})):
        _, events = mix(folder, made, name, train={"fast": fast})
        said = next(event for event in events if event["event"] == "fast")
        assert (said["packed"], said["loss"]) == (name == "fast", name == "fast")
        assert said["not_packed"] == ""
        seen.append(jobs.losses(events))
    assert seen[0] == pytest.approx(seen[1], rel=1e-4)


@pytest.mark.slow
def test_adapters_stay_what_they_were_unless_they_are_to_be_trained(folder: Path, made: Path) -> None:
    for train_adapters in (False, True):
        run, events = mix(folder, made, f"run{train_adapters}", method={"train_adapters": train_adapters})
        same = []
        for number, name in enumerate(("odd", "shout")):
            before = load_file(folder / name / "adapter" / "adapter_model.safetensors")
            after = load_file(run / "adapter" / "adapters" / str(number) / "adapter_model.safetensors")
            assert before.keys() == after.keys()
            same += [torch.equal(tensor, after[key]) for key, tensor in before.items()]
        assert set(same) == {not train_adapters}
        assert jobs.losses(events)[-1] < jobs.losses(events)[0]


@pytest.mark.slow
def test_a_mixture_goes_on_from_another(folder: Path, made: Path) -> None:
    first, _ = mix(folder, made)
    still = {"learning_rate": 1e-12, "max_steps": 1, "epochs": None}
    then, _ = mix(folder, made, "then", train={"init_from": "mixed", **still})
    assert jobs.manifest(then)["metrics"]["loss"] == pytest.approx(jobs.manifest(first)["metrics"]["loss"], rel=1e-6)
    with pytest.raises(UsageError, match="is not the adapter"):
        mix(folder, made, "other", method={"adapters": ["shout", "odd"]}, train={"init_from": "mixed", **still})


# Where adapters are looked for, and whether they belong to the base.


def test_adapters_are_looked_up_beside_the_recipe_that_names_them(folder: Path, made: Path) -> None:
    (folder / "recipes" / "more").mkdir(parents=True)
    text = jobs.recipe_text(folder, made / "base", method={**MIXED, "adapters": ["../odd", "../shout/adapter"]})
    (folder / "recipes" / "first.yaml").write_text(text.replace("train.jsonl", "../train.jsonl"))
    (folder / "recipes" / "more" / "second.yaml").write_text("extends: ../first.yaml\noutput: elsewhere\n")
    wanted = [(folder / "odd").resolve(), (folder / "shout" / "adapter").resolve()]
    for name in ("first.yaml", "more/second.yaml"):
        recipe = resolve.resolve(load_recipe(folder / "recipes" / name))
        assert [Path(path).resolve() for path in recipe.method.model_dump()["adapters"]] == wanted
        assert all(Path(path).is_absolute() for path in recipe.method.model_dump()["adapters"])
        assert resolve.resolve(recipe) == recipe


def test_check_misses_adapters_that_are_not_named(folder: Path, made: Path) -> None:
    (folder / "r.yaml").write_text(jobs.recipe_text(folder, made / "base", method={"name": "xlora"}))
    with pytest.raises(RecipeError) as refused:
        check(folder / "r.yaml")
    assert [(fault.key, fault.problem) for fault in refused.value.faults] == [
        ("method.adapters", "is missing, which xlora needs")
    ]


def test_adapters_of_another_base_are_refused_before_weights_are_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny.save(folder / "other", tiny.llama(seed=1))
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("weights were loaded"))
    with pytest.raises(UsageError, match=r"method: .*odd was trained on another base: "):
        jobs.train(folder, other, method=MIXED)
    with pytest.raises(UsageError, match=r"method\.adapters: no such folder: .*od\n"):
        jobs.train(folder, other, method={**MIXED, "adapters": ["od", "shout"]})
    assert not (folder / "run").exists()


def test_of_a_foreign_adapter_it_is_said_what_cannot_be_known(folder: Path, made: Path) -> None:
    shutil.copytree(folder / "odd" / "adapter", folder / "theirs")
    config = folder / "theirs" / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": "a/b"}))
    _, events = mix(folder, made, method={"adapters": ["theirs", "shout"]}, train={"max_steps": 1, "epochs": None})
    warned = [event["message"] for event in events if event["event"] == "warning"]
    assert any(text.startswith("method: ") and "says that its base is a/b" in text for text in warned)


def test_gradient_checkpointing_is_refused(folder: Path, made: Path) -> None:
    with pytest.raises(UsageError, match=r"gradient.checkpointing"):
        mix(folder, made, train={"gradient_checkpointing": True})


@pytest.mark.slow
@pytest.mark.whole
def test_the_recipe_trains_the_real_model_on_what_the_recipes_that_it_names_leave(tmp_path: Path) -> None:
    short = [
        "train.epochs=null", "train.max_steps=3", "train.batch_size=2", "data.max_length=48",
        "data.overlong=truncate_start", "data.train[0].limit=40", "data.eval.limit=4", "eval.choices=null",
    ]  # fmt: skip
    recipes = Path(__file__).parents[2] / "recipes" / "methods"
    wanted = load_recipe(recipes / "xlora.yaml").method.model_dump()["adapters"]
    named = [Path(path).name for path in wanted]
    for name in named:
        recipe = load_recipe(recipes / f"{name}.yaml", str(tmp_path / name), short)
        assert Path(wanted[named.index(name)]).name == Path(load_recipe(recipes / f"{name}.yaml").output).name
        job.train(recipe, "", Events())
    adapters = f"method.adapters=[{', '.join(str(tmp_path / name) for name in named)}]"
    run = job.train(load_recipe(recipes / "xlora.yaml", str(tmp_path / "run"), [*short, adapters]), "", Events())
    facts = jobs.manifest(run)
    # A classifier of one layer, for two adapters on seven linear layers of thirty blocks.
    assert facts["trainable_parameters"] == (576 + 1) * 2 * 7 * 30
    loaded = peftctl.load(run)
    assert loaded.held_out()(loaded.model)["loss"] == pytest.approx(facts["metrics"]["loss"], rel=1e-4)
