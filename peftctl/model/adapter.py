"""What a run leaves as a folder, and the check that it holds what was trained."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from peftctl.atomic import write_text
from peftctl.errors import VerificationError
from peftctl.methods import BaseName, Method, MethodSettings
from peftctl.methods.parts import heads
from peftctl.model import attach, quantize, types
from peftctl.model.auto import auto_class
from peftctl.model.locate import Base
from peftctl.recipe.schema import ModelSettings
from peftctl.tasks import Task

EPS = 2.0**-23  # float32's
MANIFEST_SAYS = "The run's manifest.json says on what data, with which method and settings, and what was measured."
VECTORS = {"mean": "mean of its tokens'", "cls": "first token's", "last": "last token's"}


def save(  # noqa: PLR0913 - what a folder is made of
    model: Any,
    method: Method,
    settings: MethodSettings,
    task: Task,
    tokenizer: Any,
    base: Base,
    folder: Path,
    *,
    loaded: ModelSettings | None = None,
) -> None:
    """Write what the method trained, and the tokenizer with its chat template; ``loaded``: how the base was, where not
    as it comes.
    """
    method.save(model, settings, BaseName(base.name, base.commit), folder)
    attach.save_heads(model, folder)
    tokenizer.save_pretrained(folder)
    auto: str = auto_class(task, model.get_base_model().config).__name__
    write_text(
        folder / "README.md",
        _card(
            base,
            method.artifact,
            loads_with(method, settings, folder),
            auto,
            task.arguments,
            loaded,
            heads(model.get_base_model()),
        )
        + _beside(task, tokenizer)
        + (f"\n{note}" if (note := types.note(model)) else ""),
    )


def outputs(task: Task, model: Any, inputs: Mapping[str, Any]) -> Any:
    """All that the model says of the rows in ``inputs``, in float32, without gradients."""
    import torch

    model.eval()
    with torch.no_grad():
        return task.outputs(model, inputs)


def loads_with(method: Method, settings: MethodSettings, folder: Path) -> Literal["peft", "peftctl", "transformers"]:
    """What opens the folder that ``save`` wrote."""
    return "peftctl" if (folder / attach.HEADS).exists() else method.loads_with(settings)


def reload(model: Any, method: Method, settings: MethodSettings, folder: Path) -> Any:
    """The base of ``model`` with what the method saved in ``folder`` in place of what it had."""
    base_model = _bare(model.get_base_model())
    if hasattr(base_model, "peft_config"):
        del base_model.peft_config  # peft would warn of a second adapter
    for parameter in base_model.parameters():
        if parameter.requires_grad:  # what was trained is to come from the folder, or be missed
            parameter.requires_grad_(False).data.fill_(math.nan)
    return attach.load(base_model, method, settings, folder)


def _bare(base_model: Any) -> Any:
    """The model with its own layers back in the places of those that a method put there.

    PEFT's ``unload`` does so by the way of merging, which some methods refuse on quantised layers.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    outer = ""
    for name, module in list(base_model.named_modules()):
        if outer and name.startswith(f"{outer}."):  # experts are wrapped once for each of their weights
            continue
        if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper):
            outer = name
            own = module.original_module if isinstance(module, AuxiliaryTrainingWrapper) else module.get_base_layer()
            parent, _, last = name.rpartition(".")
            setattr(base_model.get_submodule(parent), last, own)
    return base_model


def compare(trained: Any, reloaded: Any, rounding: float = EPS) -> dict[str, float]:
    """How far two logit tensors are apart, and the most that rounding may do, ``rounding`` of the largest logit: one
    unit in its last place, unless what was saved is another form of what was trained.

    Raises VerificationError where they are further apart.
    """
    difference = float((trained - reloaded).abs().max())
    tolerance = float(rounding * trained.abs().max())
    if not difference <= tolerance:
        raise VerificationError(
            f"what was saved does not give the trained model's logits: they differ by {difference:.3g}, "
            f"where rounding explains {tolerance:.3g}; nothing was published"
        )
    return {"max_difference": difference, "tolerance": tolerance}


PEFT = """\
To load it without peftctl:

```python
from peft import {auto}

model = {auto}.from_pretrained("path/to/this/folder"{told})
```
"""
# For the classes that PEFT has none of its own for.
AROUND_BASE = """\
To load it without peftctl:

```python
from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained({base}{told})
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
"""
# For a base that peftctl has quantised: without the same numbers its logits are others.
AROUND_QUANTISED = """\
To load it without peftctl, on the base in {bits} bits, as it was trained and verified:

```python
import torch
from peft import PeftModel
from transformers import {auto}, BitsAndBytesConfig

quantization = BitsAndBytesConfig({config})
base = {auto}.from_pretrained({base}{told}, quantization_config=quantization, dtype=torch.{dtype})
model = PeftModel.from_pretrained(base, "path/to/this/folder")
```
"""
TRANSFORMERS = """\
To load it without peftctl:

```python
from transformers import {auto}

model = {auto}.from_pretrained("path/to/this/folder")
```
"""
PEFTCTL = """\
Plain peft cannot load it. `peftctl.load("path/to/the/run")` does, in Python, and the run's folder is above this one.
"""


def _card(
    base: Base,
    artifact: str,
    loads_with: str,
    auto: str,
    told: str = "",
    loaded: ModelSettings | None = None,
    whole: Sequence[str] = (),
) -> str:
    """What the folder is. ``auto`` is the transformers class that loads the base, ``told`` what it is told beside."""
    at = f", revision {base.commit}" if base.commit else ""
    named = f"{base.source.name} (as a plain folder: {base.name})" if base.source else base.name
    return (
        f"# {artifact.capitalize()}\n\n"
        f"Trained by peftctl on {named}{at}. {MANIFEST_SAYS}\n\n"
        f"{_loading(base, loads_with, auto, told, loaded, whole)}"
    )


def _beside(task: Task, tokenizer: Any) -> str:
    """What belongs to using it beside the weights."""
    chats = ", with the chat template of training," if tokenizer.chat_template else ""
    said = f"\nIts tokenizer{chats} is in this folder, too: `AutoTokenizer.from_pretrained`.\n"
    if task.pooling:
        said += f"\nA text's vector is the {VECTORS[task.pooling]} last_hidden_state, brought to length 1.\n"
    return said


def _loading(
    base: Base, loads_with: str, auto: str, told: str, loaded: ModelSettings | None, whole: Sequence[str]
) -> str:
    """How the folder is loaded, in words and code."""
    import peft

    if loads_with == "peftctl":
        return PEFTCTL
    if loads_with == "transformers":
        return TRANSFORMERS.format(auto=auto)
    at = json.dumps(base.name) + (f", revision={json.dumps(base.commit)}" if base.commit else "")
    if loaded is not None and (bits := loaded.quantization) is not None:
        config = quantize.code(bits, loaded.dtype, whole)
        return AROUND_QUANTISED.format(bits=bits.bits, auto=auto, config=config, base=at, told=told, dtype=loaded.dtype)
    own = auto.replace("Auto", "AutoPeft", 1)
    if auto == "AutoModel":  # AutoPeftModel opens no adapter that says what it is for
        own += "ForFeatureExtraction"
    known = hasattr(peft, own)
    return PEFT.format(auto=own, told=told) if known else AROUND_BASE.format(auto=auto, base=at, told=told)
