"""The recipe as a JSON Schema, for editors: made from the same declarations that judge recipes."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import models_json_schema

from peftctl.formats import FORMATS
from peftctl.methods import METHODS
from peftctl.methods.presets import PRESETS
from peftctl.recipe.schema import NEEDED, OUTPUT, SECTIONS, EvalSource, Source
from peftctl.settings import Settings, sections_in
from peftctl.tasks import TASKS

DIALECT = "https://json-schema.org/draft/2020-12/schema"
EXTENDS = "Another recipe, by path: this one says what differs from it. Keys are joined, lists are replaced."


def json_schema() -> dict[str, Any]:
    """A schema for what ``load`` takes, but for references to the environment, and for rules between settings."""
    plain = [settings for name, settings in SECTIONS.items() if name != "method"]
    methods = [method.settings for method in METHODS.values()]
    models: list[type[Settings]] = [*plain, *methods]
    references, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/$defs/{model}"
    )
    defs: dict[str, Any] = definitions["$defs"]
    _name_members(defs)
    inner = [section for model in models for _, section in sections_in(model)]
    for described in (*models, *inner):
        _say_what(defs[described.__name__], described)
    sections = {
        name: _short(references[settings, "validation"], settings)
        for name, settings in SECTIONS.items()
        if name != "method"
    }
    sections["method"] = {
        "description": "The fine-tuning method; its settings are its own.",
        "anyOf": [{"enum": [*METHODS, *PRESETS]}, *(references[settings, "validation"] for settings in methods)],
    }
    return {
        "$schema": DIALECT,
        "title": "peftctl recipe",
        "type": "object",
        "additionalProperties": False,
        "anyOf": [{"required": ["extends"]}, {"required": list(NEEDED)}],
        "properties": {
            "extends": {"type": "string", "description": EXTENDS},
            **{name: sections[name] for name in SECTIONS},
            "output": {"type": "string", "minLength": 1, "description": OUTPUT},
        },
        "$defs": defs,
    }


def _name_members(defs: dict[str, Any]) -> None:
    """The names of the tables' members, which the types do not list."""
    defs["TaskSettings"]["properties"]["name"]["enum"] = list(TASKS)
    for name, preset in PRESETS.items():
        named = defs[METHODS[preset.method].settings.__name__]["properties"]["name"]
        named["enum"] = [*named.pop("enum", [named.pop("const", preset.method)]), name]
    for source in ("Source", "EvalSource"):
        defs[source]["properties"]["format"]["enum"] = ["auto", *FORMATS]
    train = defs["DataSettings"]["properties"]["train"]
    one = _short({"$ref": "#/$defs/Source"}, Source)
    train.update({"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]})
    for key in ("type", "items", "minItems"):
        train.pop(key, None)
    held_out = defs["DataSettings"]["properties"]["eval"]
    held_out["anyOf"] = [_short({"$ref": "#/$defs/EvalSource"}, EvalSource), {"type": "null"}]


def _say_what(definition: dict[str, Any], settings: type[Settings]) -> None:
    definition["description"] = " ".join((settings.__doc__ or "").split())
    definition.pop("title", None)
    for setting in definition["properties"].values():
        setting.pop("title", None)


def _short(reference: dict[str, Any], settings: type[Settings]) -> dict[str, Any]:
    """A section, or the word that may stand for it."""
    if not settings.shorthand:
        return reference
    return {"anyOf": [{"type": "string"}, reference]}
