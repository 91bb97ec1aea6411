"""Settings made from the table of PEFT's config classes: the same fields by the same names, with their limits."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, WrapValidator, create_model, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from peftctl.methods.contract import MethodSettings, TargetedSettings, peft
from peftctl.methods.generic_facts import FACTS
from peftctl.methods.generic_limits import BY_TARGET, LIMITS, NEEDED, RULES, SHARED_LIMITS, why_not
from peftctl.tables import table

_PLAIN: Mapping[str, Any] = {
    "bool": bool,
    "int": int,
    "float": float,
    "str": Annotated[str, Field(min_length=1)],
    "list[int]": Annotated[tuple[int, ...], Field(strict=False)],
    "dict": Mapping[str, float],
    "dict[str, int | float]": Mapping[str, float],
}


class GenericSettings(MethodSettings):
    """What settings made from PEFT's fields have in common: the method's rules, and words for fields that are none."""

    of: ClassVar[str]

    @model_validator(mode="wrap")
    @classmethod
    def _judged(cls, values: Any, handler: ModelWrapValidatorHandler[Any]) -> Any:
        try:
            made = handler(values)
        except ValidationError as error:
            raise ValidationError.from_exception_data(
                cls.__name__, [_line(cls.of, each) for each in error.errors()]
            ) from None
        broken: list[InitErrorDetails] = [
            {
                "type": PydanticCustomError("rule", "{problem}", {"problem": problem}),
                "loc": (at,),
                "input": getattr(made, at),
            }
            for at, problem in RULES.get(cls.of, _no_rules)(made)
        ]
        if broken:
            raise ValidationError.from_exception_data(cls.__name__, broken)
        return made


def _no_rules(settings: Any) -> Iterator[tuple[str, str]]:
    yield from ()


def _line(method: str, found: Any) -> InitErrorDetails:
    """An error as it is, or in better words where a field of PEFT's is none of the settings."""
    name = str(found["loc"][-1]) if found["loc"] else ""
    kind: Any = found["type"]
    if kind == "extra_forbidden" and FACTS[method].refused:
        kind = PydanticCustomError(
            "refused", "{problem}", {"problem": f"{method} cannot be trained: {FACTS[method].refused}"}
        )
    elif kind == "extra_forbidden" and (problem := why_not(method, name)):
        kind = PydanticCustomError("reserved", "{problem}", {"problem": problem})
    elif found["type"] == "literal_error":
        kind = PydanticCustomError("literal_error", "no such value", found["ctx"])
    return {"type": kind, "loc": found["loc"], "input": found["input"], "ctx": found.get("ctx", {})}


@cache
def settings_of(name: str) -> type[MethodSettings]:
    """The settings of PEFT's method ``name``, with defaults: what of its config is not peftctl's to decide."""
    base: type[MethodSettings] = TargetedSettings if FACTS[name].targets else MethodSettings
    fields = table("peft_configs")["methods"][name]
    declared: dict[str, Any] = {"name": (Literal[name], name)}
    offered = [] if FACTS[name].refused else [field for field in fields if not why_not(name, field)]
    for field in sorted(offered, key=lambda each: fields[each]["at"]):
        declared[field] = _declared(name, field, fields[field])
    words = f"Settings of {FACTS[name].summary.split(':')[0]}, by PEFT's names."
    title = f"{''.join(word.capitalize() for word in name.split('_'))}Settings"
    made: type[MethodSettings] = _class(title, (GenericSettings, base), words, declared)
    made.of = name  # type: ignore[attr-defined]  # GenericSettings has it
    made.needed = NEEDED.get(name, ())
    return made


def _class(title: str, bases: tuple[type[MethodSettings], ...], words: str, fields: Mapping[str, Any]) -> Any:
    return create_model(title, __base__=bases, __doc__=words, **fields)


def _declared(name: str, field: str, found: Mapping[str, Any]) -> tuple[Any, Any]:
    """A field's type and default, as pydantic takes them."""
    alternatives = [kind for kind in re.split(r" \| (?![^\[]*\])", found["type"]) if kind != "None"]
    optional = "None" in found["type"].split(" | ")
    default = FACTS[name].defaults.get(field, found["default"])
    kind: Any
    if set(alternatives) <= {"int", "float"}:
        kind = float if "float" in alternatives else int
    elif len(alternatives) == 1:
        kind = _kind(alternatives[0])
    else:
        kind = _one_of(alternatives)
    if said := BY_TARGET.get((name, field)):
        number: Any = Annotated[said, Field(gt=0)]
        kind, optional, default = Mapping[str, number], True, None
    limits = LIMITS.get((name, field)) or next(
        (limits for ending, limits in SHARED_LIMITS.items() if re.fullmatch(ending, field)), {}
    )
    if limits:
        kind = Annotated[kind, Field(**limits)]
    if default == []:
        default = ()
    return (kind | None if optional or default is None else kind), Field(
        default, description=_sentence(found["help"]), json_schema_extra=peft(field)
    )


def _kind(text: str) -> Any:
    return Literal[tuple(_words(text))] if text.startswith("Literal") else _PLAIN[text]


def _words(text: str) -> list[str]:
    words: list[str] = ast.literal_eval(text.removeprefix("Literal"))
    return words


def _one_of(alternatives: list[str]) -> Any:
    """A type of several kinds, whose error names them all at once."""
    words = [word for kind in alternatives if kind.startswith("Literal") for word in _words(kind)]
    allowed = [*(["true", "false"] if "bool" in alternatives else []), *words]
    union: Any = None
    for kind in alternatives:
        union = _kind(kind) if union is None else union | _kind(kind)

    def judged(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            expected = {"expected": ", ".join(allowed)}
            raise PydanticCustomError("literal_error", "no such value", expected) from None

    return Annotated[union, WrapValidator(judged)]


def _sentence(text: str) -> str:
    """The first sentence of PEFT's help: the others advise on values for other models."""
    first = re.split(r"(?<=[\w)\]'`%])\. (?=[A-Z'`])", text, maxsplit=1)[0].strip()
    return first if first.endswith(".") else f"{first}."
