"""An adapter folder that plain peft loads, and the check that it holds what was trained."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftctl.atomic import write_json, write_text
from peftctl.errors import VerificationError
from peftctl.model.locate import Base


def save(peft_model: Any, tokenizer: Any, base: Base, folder: Path) -> None:
    """Write the adapter and the tokenizer with its chat template. The config names the base as plain peft needs it."""
    for config in peft_model.peft_config.values():
        config.base_model_name_or_path = base.name
        config.revision = base.commit
    peft_model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    _sort_targets(folder / "adapter_config.json")
    tokenizer.save_pretrained(folder)
    write_text(folder / "README.md", _card(base))


def _sort_targets(path: Path) -> None:
    """PEFT keeps targets as a set, whose order differs from process to process; the same run leaves the same bytes."""
    config = json.loads(path.read_text("utf-8"))
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    write_json(path, config)


def logits(model: Any, inputs: Mapping[str, Any]) -> Any:
    """Every logit of the rows in ``inputs`` (input_ids, attention_mask), [rows, length, vocabulary], float32."""
    import torch

    model.eval()
    with torch.no_grad():
        return model(**{**inputs, "use_cache": False}).logits.float()


def reload(peft_model: Any, folder: Path) -> Any:
    """The base model of ``peft_model`` with the adapter from ``folder`` in place of the one it had."""
    from peft import PeftModel

    base_model = _bare(peft_model.get_base_model())
    if hasattr(base_model, "peft_config"):
        del base_model.peft_config  # peft would warn of a second adapter
    return PeftModel.from_pretrained(base_model, folder)


def _bare(base_model: Any) -> Any:
    """The model with its own layers back in the places of those that a method put there.

    PEFT's ``unload`` does so by the way of merging, which some methods refuse on quantised layers.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(base_model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, last = name.rpartition(".")
            setattr(base_model.get_submodule(parent), last, module.get_base_layer())
    return base_model


def compare(trained: Any, reloaded: Any) -> dict[str, float]:
    """How far two logit tensors are apart, and the most that rounding may do: one unit in the largest logit's place.

    Raises VerificationError where they are further apart.
    """
    import torch

    difference = float((trained - reloaded).abs().max())
    tolerance = float(torch.finfo(torch.float32).eps * trained.abs().max())
    if not difference <= tolerance:
        raise VerificationError(
            f"the saved adapter does not give the trained model's logits: they differ by {difference:.3g}, "
            f"where rounding explains {tolerance:.3g}; nothing was published"
        )
    return {"max_difference": difference, "tolerance": tolerance}


def _card(base: Base) -> str:
    at = f", revision {base.commit}" if base.commit else ""
    named = f"{base.source.name} (as a plain folder: {base.name})" if base.source else base.name
    return (
        "# Adapter\n\n"
        f"Trained by peftctl on {named}{at}. The run's manifest.json says on what data, with which method and\n"
        "settings, and what was measured. To load it without peftctl:\n\n"
        "```python\n"
        "from peft import AutoPeftModelForCausalLM\n\n"
        'model = AutoPeftModelForCausalLM.from_pretrained("path/to/this/folder")\n'
        "```\n"
    )
