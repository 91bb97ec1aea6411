"""Every broken recipe gets exactly the message it deserves, and typos get the word that was meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from peftctl.errors import RecipeError
from peftctl.recipe import check
from tests.contract.broken_recipes import BROKEN

# What people are likely to type, and what they meant.
TYPOS = {
    "train: {lr: 1e-4}": "learning_rate",
    "train: {learing_rate: 1e-4}": "learning_rate",
    "train: {batchsize: 4}": "batch_size",
    "train: {max_step: 4}": "max_steps",
    "train: {epoch: 1}": "epochs",
    "train: {grad_checkpointing: true}": "gradient_checkpointing",
    "num_train_epochs: 3": "train.epochs",
    "target_modules: [q_proj]": "method.targets",
    "lora_alpha: 16": "method.alpha",
    "per_device_train_batch_size: 4": "train.batch_size",
    "evaluation: {every: 5}": "eval",
    "tain: {epochs: 1}": "train",
    "tracking: {to: [wandb]}": "track",
    "train: {weight_deacy: 0.1}": "weight_decay",
    "train: {warmup: 0.1}": "warmup_ratio",
}


@pytest.mark.parametrize(("text", "faults"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
@pytest.mark.timeout(5)
def test_a_broken_recipe_gets_exactly_this_message(
    text: str, faults: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        check(Path("recipe.yaml"))
    assert [str(fault) for fault in caught.value.faults] == faults


def test_there_are_sixty_of_them_and_no_two_the_same() -> None:
    assert len(BROKEN) >= 60
    assert len({text for _, text, _ in BROKEN}) == len(BROKEN)


@pytest.mark.parametrize(("line", "meant"), TYPOS.items())
def test_a_typo_is_answered_with_the_word_that_was_meant(line: str, meant: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\n{line}\n")
    with pytest.raises(RecipeError) as caught:
        check(path)
    assert [fault.nearest for fault in caught.value.faults] == [meant]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"model: caf\xe9\n", "recipe.yaml:1: not UTF-8 text (found byte 0xe9)"),
        (b"# " + b"x" * 100_001, "recipe.yaml: too large for a recipe (found 100,003 bytes); allowed: 100 kB"),
    ],
)
def test_what_is_no_text_or_too_much_is_refused_unparsed(
    content: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        check(Path("recipe.yaml"))
    assert str(caught.value) == said


def problems(path: Path) -> set[str]:
    try:
        check(path)
    except RecipeError as error:
        return {fault.problem for fault in error.faults}
    return set()


def test_shipped_recipes_are_right_and_name_their_schema() -> None:
    recipes = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
    assert recipes
    for path in recipes:
        assert problems(path) <= {"no such file or folder", "no such folder"}, path  # a model to fetch, runs to make
        assert path.read_text().startswith("# yaml-language-server: $schema="), path
