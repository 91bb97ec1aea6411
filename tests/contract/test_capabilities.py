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


def verdicts(methods: dict[str, Any]) -> dict[tuple[str, str, str], bool]:
    """Every cell of the table by its place: whether it says yes."""
    found = {}
    for name, able in methods.items():
        for part in ("tasks", "families", "quantization"):
            found |= {(name, part, what): said == "yes" for what, said in able[part].items()}
        found |= {(name, part, ""): able[part] == "yes" for part in ("checkpointing", "merges")}
    return found


def test_the_table_has_every_method_on_every_task_family_and_number_of_bits() -> None:
    families = script().FAMILIES
    assert SEEN.keys() == METHODS.keys()
    for able in SEEN.values():
        assert able["tasks"].keys() == TASKS.keys()
        assert able["families"].keys() == families.keys()
        assert able["quantization"].keys() == {"4", "8"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # libraries' deprecations, which the script does not see as errors
@pytest.mark.parametrize(
    ("seed", "sizes"),
    [(1, {"hidden_size": 32, "intermediate_size": 96}), (2, {"num_hidden_layers": 3, "vocab_size": 120})],
)
def test_another_trial_says_the_same(seed: int, sizes: dict[str, int]) -> None:
    found, wanted = verdicts(script().tried(seed=seed, **sizes)), verdicts(SEEN)
    assert found.keys() == wanted.keys()
    differing = {place: (wanted[place], said) for place, said in found.items() if said != wanted[place]}
    assert differing == {}


def test_a_method_that_does_not_work_gets_no_yes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial itself: a method whose count is wrong, or that trains nothing, is found out."""
    module, method, task = script(), METHODS["lora"], TASKS["causal_lm"]
    monkeypatch.setattr(module, "STEPS", 3)
    assert module._cell(method, task, 0, module.SIZES)() == "yes"
    with monkeypatch.context() as patch:
        patch.setattr(type(method), "parameters", lambda *_: 7)
        assert module._cell(method, task, 0, module.SIZES)().startswith("VerificationError: method: lora trains ")
    with monkeypatch.context() as patch:
        patch.setattr(type(method), "after_update", lambda self, model, step: _zero(model))
        assert "ValueError: " in module._cell(method, task, 0, module.SIZES)()


def _zero(model: Any) -> None:
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.zero_()
