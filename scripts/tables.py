"""Make peftctl/tables/*.json from the installed transformers and peft.

    python scripts/tables.py [--check]     --check tries no capabilities, which takes minutes: tests try some of them

model_types   for each task, the model types that transformers has a class for, as auto_class chooses it; those of
              them that read in both directions unless their config says is_decoder, where the task does not allow it
peft_configs  for each method, PEFT's config class: every field's type and default; help too where we have no class
capabilities  for each method, on which tasks, families, quantised bases it was built on a tiny model, trained and read
              back equal; whether with gradient checkpointing; whether it merges (scripts/capabilities.py)
"""

from __future__ import annotations

import dataclasses
import enum
import json
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peftctl.quiet import quiet_libraries

TABLES = Path(__file__).resolve().parent.parent / "peftctl" / "tables"


def main() -> None:
    quiet_libraries()
    stale = []
    tables = {"model_types": model_types, "peft_configs": peft_configs, "capabilities": capabilities}
    if named := [name for name in sys.argv[1:] if name != "--check"]:
        tables = {name: tables[name] for name in named}
    elif "--check" in sys.argv:
        del tables["capabilities"]  # tests/contract/test_capabilities.py, and all of it scripts/proofs matrix
    for name, make in tables.items():
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

    from peftctl.model.auto import auto_class
    from peftctl.tasks import TASKS

    by_task, both_ways = {}, {}
    for task in TASKS.values():
        own = task.model_class()._model_mapping
        # Another class is chosen by what a config says, so one of each kind is made for it.
        others = (each for each in transformers.AutoModelForMultimodalLM._model_mapping if each not in own)
        able = [*own, *(each for each in others if each in auto_class(task, each())._model_mapping)]
        by_task[task.name] = sorted({config.model_type for config in able if config.model_type})
        both_ways[task.name] = encoders(task)
    return {"transformers": transformers.__version__, "tasks": by_task, "encoders": both_ways}


def encoders(task: Any) -> list[str]:
    """Of the task's model types those whose config has an is_decoder, and that look ahead where it is false."""
    from peftctl.model.causal import kind_looks_ahead

    own = task.model_class()._model_mapping
    configs = [each() for each in own if task.causal and hasattr(each, "is_decoder")]
    apart = [config for config in configs if not config.is_encoder_decoder]  # decoders of those are of no other use
    return sorted(config.model_type for config in apart if kind_looks_ahead(config, task))


def peft_configs() -> dict[str, Any]:
    """Of PEFT's own methods settings are made by this table: it has each field's place, type and help too."""
    import peft

    from peftctl.methods import METHODS
    from peftctl.methods.generic import Generic
    from peftctl.methods.generic_limits import why_not

    configs = {}
    for method in METHODS.values():
        if not method.peft_type:
            continue
        config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType(method.peft_type)]
        hints = typing.get_type_hints(config_class)
        configs[method.name] = fields = {}
        for at, field in enumerate(dataclasses.fields(config_class)):
            fields[field.name] = {"type": _written(field.type), "default": _default(field)}
            if isinstance(method, Generic) and not why_not(method.name, field.name):
                kind = _choices().get((method.name, field.name)) or _type(hints[field.name])
                fields[field.name] |= {"at": at, "type": kind, "help": _help(field)}
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


def _written(hint: Any) -> str:
    """A type as PEFT writes it, alternatives in our order: theirs is that of whoever first made an equal union."""
    if typing.get_origin(hint) is not typing.Union:
        return str(hint)
    within = sorted(typing.get_args(hint), key=lambda each: (each is type(None), str(each)))
    return " | ".join(map(_type, within))


def _type(hint: Any) -> str:
    """A type in one spelling: alternatives between bars, ``Literal[...]`` for words."""
    origin, within = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " | ".join(dict.fromkeys(_type(each) for each in within))
    if origin is typing.Literal:
        return _literal(within)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return _literal([each.value for each in hint])
    if origin in (list, dict):
        return f"{origin.__name__}[{', '.join(map(_type, within))}]"
    return "None" if hint is type(None) else str(hint.__name__)


def _literal(words: Sequence[str]) -> str:
    return f"Literal[{', '.join(map(repr, words))}]"


def _choices() -> dict[tuple[str, str], str]:
    """Fields that PEFT declares as any text and takes few words for."""
    from peft.tuners.waveft.wavelet import _WAVELET_COEFFS
    from transformers.activations import ACT2FN

    return {
        ("peanut", "act_fn"): _literal(sorted(ACT2FN)),
        ("tinylora", "init_weights"): f"bool | {_literal(['uniform'])}",
        ("road", "variant"): _literal(["road_1", "road_2", "road_4"]),
        ("waveft", "wavelet_family"): _literal(sorted(_WAVELET_COEFFS)),
    }


def _help(field: dataclasses.Field[Any]) -> str:
    said = field.metadata.get("help", "")
    return " ".join(("".join(said) if isinstance(said, tuple) else str(said)).split())


if __name__ == "__main__":
    main()
