"""The table of what methods can do against a fresh trial, with another seed and other sizes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from peftctl.methods import METHODS
from peftctl.tables import table
from peftctl.tasks import TASKS

ROOT = Path(__file__).parents[2]
SEEN: dict[str, Any] = table("capabilities")["methods"]


def script() -> Any:
    spec = importlib.util.spec_from_file_location("capabilities", ROOT / "scripts" / "capabilities.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = script()
OTHER = {**SCRIPT.SIZES, "hidden_size": 128, "intermediate_size": 192, "vocab_size": 120}
ASPECTS: list[dict[str, Any]] = [
    {"bits": 4}, {"bits": 8}, {"dtype": "bfloat16"}, {"checkpointing": True}, {"packing": True},
]  # fmt: skip


def test_the_table_has_every_method_on_every_task_family_and_number_of_bits() -> None:
    assert SEEN.keys() == METHODS.keys()
    for able in SEEN.values():
        assert able["tasks"].keys() == TASKS.keys()
        assert able["families"].keys() == SCRIPT.FAMILIES.keys()
        assert able["quantization"].keys() == {"4", "8"}


def wanted(able: dict[str, Any], changes: dict[str, Any]) -> str:
    """The table's verdict on what is tried with ``changes``."""
    ((what, value),) = changes.items()
    if what == "bits":
        return str(able["quantization"][str(value)])
    return str(able[value if what == "dtype" else what])


@pytest.mark.slow
@pytest.mark.every
@pytest.mark.filterwarnings("ignore")  # libraries' deprecations, which the script does not see as errors
@pytest.mark.parametrize(("at", "name"), list(enumerate(METHODS)))
def test_another_trial_says_the_same(at: int, name: str) -> None:
    """One family and one aspect a method, by turns, with another seed and other sizes; ``scripts/proofs`` does all."""
    able, method = SEEN[name], METHODS[name]
    families = list(SCRIPT.FAMILIES)
    tried = SCRIPT._cell(method, SCRIPT.task_of("causal_lm"), 1, OTHER)
    family = families[at % len(families)]
    found, merged = tried(family=family, merge=True)
    assert (found == "yes") is (able["families"][family] == "yes"), found
    if found == "yes" and able["merges"] == "yes":
        assert merged == "yes"
    home = next((family for family in families if able["families"][family] == "yes"), families[0])
    changes = ASPECTS[at % len(ASPECTS)]
    found, _ = tried(family=home, **changes)
    assert (found == "yes") is (wanted(able, changes) == "yes"), found


def test_a_method_that_does_not_work_gets_no_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial itself: a method whose count is wrong, or that trains nothing, is found out."""
    module, method, task = SCRIPT, METHODS["lora"], SCRIPT.task_of("causal_lm")
    monkeypatch.setattr(module, "STEPS", 3)
    assert module._cell(method, task, 0, module.SIZES)(merge=True) == ("yes", "yes")
    with monkeypatch.context() as patch:
        patch.setattr(type(method), "parameters", lambda *_: 7)
        assert module._cell(method, task, 0, module.SIZES)()[0].startswith("lora trains ")
    with monkeypatch.context() as patch:
        patch.setattr(type(method), "after_update", lambda self, model, step: _zero(model))
        assert "ValueError: " in module._cell(method, task, 0, module.SIZES)()[0]


def _zero(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
