"""Trained adapters put into a model without weights, every tensor of theirs accounted for."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.atomic import write_json
from peftctl.errors import UsageError, VerificationError
from peftctl.inspection.keys import some
from peftctl.merge.pages import let_go_of
from peftctl.merge.source import CONFIG, WEIGHTS, Part, Source
from peftctl.merge.weights import Weights
from peftctl.model import types

PREFIX = "base_model.model."
MERGED = "merged"
# What PEFT warns of: tied embeddings come apart here where they have to, a transposed layer is known by its class, and
# missing tensors are named below.
KNOWN = (
    "Model (has|with) `tie_word_embeddings=True`",
    "fan_in_fan_out is set to False but the target module is `Conv1D`",
    "Found missing adapter keys while loading the checkpoint",
)


@dataclass(frozen=True)
class Combine:
    """How several adapters become one, by PEFT's name for it; ``density``: what share of each is kept, where that is
    part of it; ``seed`` fixes what is left out by chance."""

    how: str = "cat"
    density: float | None = None
    seed: int = 0


def given(part: Part, shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """The model's own matrices that an adapter's file holds whole, by parameter, with their keys: PEFT saves embeddings
    so where it takes the vocabulary to have been changed. Those of modules that were trained whole are none of them.
    """
    return {name: key for name, key in _whole(part, shapes).items() if len(shapes[name]) > 1}


def biases(part: Part, shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """The model's own parameters of one dimension that an adapter's file holds."""
    return {name for name in _whole(part, shapes) if len(shapes[name]) < 2}


def _whole(part: Part, shapes: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """The model's own parameters that the file holds, with their keys."""
    if not (part.folder / WEIGHTS).exists():
        return {}
    found = {}
    with Weights([part.folder / WEIGHTS]) as weights:
        for key in weights.stored:
            name = key.removeprefix(PREFIX).replace(".base_layer.", ".")
            module = f".{name.rpartition('.')[0]}."
            whole = any(f".{each}." in module for each in _saved_whole(part))  # or a part of what was trained whole
            if name in shapes and not whole:
                found[name] = key
    return found


def put(model: Any, source: Source, combine: Combine, given: Mapping[str, str], scratch: Path) -> Any:
    """The PEFT model with what is to be merged active in it. ``given`` tensors are left out.

    Raises UsageError where an adapter does not fit the model, VerificationError where a tensor of it has no place.
    """
    with warnings.catch_warnings():
        for text in KNOWN:
            warnings.filterwarnings("ignore", text)
        return _put(model, source, combine, given, scratch)


def _put(model: Any, source: Source, combine: Combine, given: Mapping[str, str], scratch: Path) -> Any:
    import torch

    first, *others = source.parts
    folder = _without(first.folder, given, scratch) if given else first.folder
    try:
        peft_model = first.method.load(model, first.settings, folder)
        for number, part in enumerate(others, start=1):
            peft_model.load_adapter(part.folder, adapter_name=f"part{number}")
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, re.error) as error:
        # PEFT's ways of refusing a model, and what it stumbles over in a config that nobody checked
        told = str(error).strip().split("\n")
        raise UsageError(f"{first.folder} does not fit {source.base.name}: {' '.join(told[:2])}") from error
    types.hand_on(peft_model)
    if not getattr(peft_model, "selected", ()):
        for name, part in zip(["default", *(f"part{n}" for n, _ in enumerate(others, start=1))], source.parts,
                              strict=True):  # fmt: skip
            _account(peft_model, name, part, given)
    let_go_of(folder / WEIGHTS)
    if others:
        _weigh(peft_model, source, combine)
    for module in peft_model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return peft_model.requires_grad_(False).eval()


def _weigh(peft_model: Any, source: Source, combine: Combine) -> None:
    import torch

    names = ["default", *(f"part{number}" for number in range(1, len(source.parts)))]
    adder = getattr(peft_model.base_model, "add_weighted_adapter", None)
    if adder is None:
        raise UsageError(f"--adapter: {source.part.method.name} adapters cannot be combined; allowed: lora")
    torch.manual_seed(combine.seed)
    options = {"density": combine.density} if combine.density is not None else {}
    try:
        adder(names, [part.weight for part in source.parts], MERGED, combination_type=combine.how, **options)
    except (ValueError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UsageError(f"--combine: {combine.how} does not work on these adapters: {reason}") from error
    peft_model.set_adapter(MERGED)


def _account(peft_model: Any, name: str, part: Part, given: Mapping[str, str]) -> None:
    """Every tensor in the file went somewhere, and every tensor that should have come from it did."""
    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = set(get_peft_model_state_dict(peft_model, adapter_name=name, save_embedding_layers=False))
    with Weights([part.folder / WEIGHTS]) as weights:
        found = set(weights.stored) - set(given.values())
    if strays := sorted(found - expected):
        raise VerificationError(
            f"{part.folder}: {some(strays)} of its tensors have no place in the model; nothing was published",
            "it was made by another version of peft, or for another model",
        )
    if missing := sorted(expected - found):
        raise VerificationError(f"{part.folder} lacks {some(missing)} that its config asks for; nothing was published")


def _without(folder: Path, given: Mapping[str, str], scratch: Path) -> Path:
    """A copy of the adapter without some tensors."""
    from safetensors.torch import load_file, save_file

    left = {key: tensor for key, tensor in load_file(folder / WEIGHTS).items() if key not in given.values()}
    save_file(left, scratch / WEIGHTS)
    write_json(scratch / CONFIG, json.loads((folder / CONFIG).read_text("utf-8")))
    return scratch


def _saved_whole(part: Part) -> Sequence[str]:
    config = part.folder / CONFIG
    return json.loads(config.read_text("utf-8")).get("modules_to_save") or () if config.exists() else ()
