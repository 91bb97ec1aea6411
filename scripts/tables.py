"""Make peftctl/tables/*.json from the installed transformers and peft.

    python scripts/tables.py [--check]

model_types   for each task, the model types that transformers has a class for
peft_configs  for each method, PEFT's config class: every field's type and default
capabilities  for each method, on which tasks, families, quantised bases it was built on a tiny model, trained and read
              back equal; whether with gradient checkpointing; whether it merges (scripts/capabilities.py)
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
    from capabilities import tried

    return {"peft": peft.__version__, "transformers": transformers.__version__, "methods": tried()}


def _default(field: dataclasses.Field[Any]) -> Any:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    value = getattr(value, "value", value)
    plain = value is None or isinstance(value, bool | int | float | str | list | dict)
    return value if plain else None if value is dataclasses.MISSING else str(value)


if __name__ == "__main__":
    main()
