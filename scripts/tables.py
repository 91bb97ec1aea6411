"""Make peftctl/tables/*.json from the installed transformers and peft.

    python scripts/tables.py [--check]

model_types   for each task, the model types that transformers has a class for
peft_configs  for each method, PEFT's config class: every field's type and default
capabilities  for each method, the tasks on which it was built on a tiny model, trained a step and read back equal
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from peftctl.quiet import quiet_libraries

TABLES = Path(__file__).resolve().parent.parent / "peftctl" / "tables"


def main() -> None:
    quiet_libraries()
    stale = []
    for name, make in {"model_types": model_types, "peft_configs": peft_configs, "capabilities": capabilities}.items():
        text = json.dumps(make(), indent=1, sort_keys=True) + "\n"
        path = TABLES / f"{name}.json"
        if path.exists() and path.read_text("utf-8") == text:
            continue
        stale.append(path.name)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
    if stale:
        print("stale:" if "--check" in sys.argv else "written:", ", ".join(stale))
    sys.exit(bool(stale) and "--check" in sys.argv)


def model_types() -> dict[str, Any]:
    import transformers

    from peftctl.tasks import TASKS

    by_task = {}
    for task in TASKS.values():
        mapping = task.model_class()._model_mapping
        by_task[task.name] = sorted(config.model_type for config in mapping if config.model_type)
    return {"transformers": transformers.__version__, "tasks": by_task}


def peft_configs() -> dict[str, Any]:
    import peft

    from peftctl.methods import METHODS

    configs = {}
    for method in METHODS.values():
        config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(method.peft_type)]
        configs[method.name] = {
            field.name: {"type": str(field.type), "default": _default(field)}
            for field in dataclasses.fields(config_class)
        }
    return {"peft": peft.__version__, "methods": configs}


def capabilities() -> dict[str, Any]:
    import peft
    import transformers

    from peftctl.methods import METHODS
    from peftctl.tasks import TASKS

    tried = {
        method.name: {"tasks": {task.name: _works(method, task) for task in TASKS.values()}}
        for method in METHODS.values()
    }
    return {"peft": peft.__version__, "transformers": transformers.__version__, "methods": tried}


def _works(method: Any, task: Any) -> str:
    """ "yes", or the reason: build on a tiny Llama, one update, save, read back, equal outputs."""
    import tempfile

    import torch
    from transformers import AutoConfig

    from peftctl.methods import DataFacts
    from peftctl.model import adapter, attach, targets

    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    try:
        base = task.model_class().from_config(config).requires_grad_(False)
        settings = method.resolve(method.settings())
        wanted = method.choose(base) if settings.wanted is None else settings.wanted
        anatomy = attach.anatomy(base, targets.resolve(base, wanted))
        model = attach.attach(base, method, settings, anatomy, task.peft_type, DataFacts(8, 64, 32, 8, 10))
        ids = torch.arange(12).reshape(2, 6)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for step in range(3):
            model(input_ids=ids).logits.square().mean().backward()
            optimizer.step()
            if method.after_update:
                method.after_update(model, step)
            optimizer.zero_grad()
        inputs = {"input_ids": ids}
        trained = adapter.logits(model, inputs)
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, save_embedding_layers=False)
            adapter.compare(trained, adapter.logits(adapter.reload(model, Path(folder)), inputs))
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "yes"


def _default(field: dataclasses.Field[Any]) -> Any:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    value = getattr(value, "value", value)
    plain = value is None or isinstance(value, bool | int | float | str | list | dict)
    return value if plain else None if value is dataclasses.MISSING else str(value)


if __name__ == "__main__":
    main()
