"""What a recipe combines against what was seen to work, by the table made with the pinned versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.errors import UsageError
from peftctl.methods import METHODS
from peftctl.recipe.schema import Recipe
from peftctl.tables import table

MOST = 3
YES = "yes"


@dataclass(frozen=True)
class Refusal:
    """A combination that does not work: the setting, why, what works instead, and the other setting it is about, None
    where that is in the same section.
    """

    path: tuple[str, ...]
    problem: str
    allowed: str
    also: tuple[str, ...] | None


@dataclass(frozen=True)
class _Asked:
    """Something that a recipe asks of its method: where, in words, the method's verdict on it, and what else to ask."""

    also: tuple[str, ...]
    words: str
    verdict: Callable[[Mapping[str, Any]], str]
    instead: Callable[[Mapping[str, Any]], list[str]]


def refusals(recipe: Recipe, family: str | None = None) -> Iterator[Refusal]:
    """What of the recipe's method does not go with itself, its start, its task, its model's ``family`` (``model_type``,
    where known), its quantised base or its checkpointing.

    A method or a family that the table does not have is not judged: trying it will tell.
    """
    methods: dict[str, Any] = table("capabilities")["methods"]
    name = recipe.method.name
    for setting, problem, allowed in METHODS[name].contradictions(recipe.method):
        yield Refusal(("method", setting), problem, allowed, None)
    if recipe.train.init_from is not None and (clash := METHODS[name].start_clash(recipe.method)):
        (setting, problem, allowed), start = clash, ("train", "init_from")
        path = tuple(setting.split("."))
        yield Refusal(path, problem, allowed, None if path == start else start)
    if name not in methods:
        return
    asked, order = list(_asked(recipe, family)), list(METHODS)  # which begins with those most used
    told: set[str] = set()
    if (refusal := _setting_on_bits(recipe)) is not None:
        yield refusal
    for each in asked:
        if (said := each.verdict(methods[name])) not in (YES, *told):  # one reason is said once
            told.add(said)
            never = said.startswith(f"{name} cannot be trained")  # on whatever it is tried
            problem = said.rstrip(".") if never else f"{name} does not work {each.words}: {said.rstrip('.')}"
            instead = each.instead(methods[name])
            others = [
                other
                for other, able in sorted(methods.items(), key=lambda item: order.index(item[0]))
                if other != name and all(one.verdict(able) == YES for one in asked)
            ]
            if others:
                instead.append(f"method {_or(others[:MOST])}")
            yield Refusal(
                ("method", "name"),
                problem,
                ", or ".join(filter(None, [", ".join(instead[:-1]), *instead[-1:]])),
                each.also,
            )


def _setting_on_bits(recipe: Recipe) -> Refusal | None:
    """One setting of the method that does not go with the quantised base, where there is one."""
    quantization = recipe.model.quantization
    if quantization is None:
        return None
    found = METHODS[recipe.method.name].clash(recipe.method, quantization.bits)
    if found is None:
        return None
    setting, reason, allowed = found
    problem = f"does not go with {quantization.bits} bits: {reason}"
    return Refusal(("method", setting), problem, allowed, ("model", "quantization"))


def judge(recipe: Recipe, family: str | None = None) -> None:
    """Raises UsageError with every refusal."""
    if refused := [
        f"{'.'.join(each.path)}: {each.problem}" + (f"; allowed: {each.allowed}" if each.allowed else "")
        for each in refusals(recipe, family)
    ]:
        raise UsageError("\n".join(refused))


def _asked(recipe: Recipe, family: str | None) -> Iterator[_Asked]:
    task = recipe.task.name
    yield _Asked(
        ("task", "name"),
        f"on {task}",
        lambda able: str(able["tasks"].get(task, YES)),
        lambda able: [f"task {other}" for other, said in able["tasks"].items() if said == YES],
    )
    if family is not None:
        yield _Asked(
            ("model", "name"), f"on {family}", lambda able: str(able["families"].get(family, YES)), lambda able: []
        )
    if recipe.model.dtype == "bfloat16":
        yield _Asked(
            ("model", "dtype"),
            "in bfloat16",
            lambda able: str(able["bfloat16"]),
            lambda able: ["model.dtype float32"],
        )
    if (quantization := recipe.model.quantization) is not None:
        bits = str(quantization.bits)
        yield _Asked(
            ("model", "quantization"),
            f"on {bits} bits",
            lambda able: str(able["quantization"][bits]),
            lambda able: [
                *(f"quantization.bits {other}" for other, said in able["quantization"].items() if said == YES),
                "a base that is not quantised",
            ],
        )
    if recipe.train.gradient_checkpointing:
        yield _Asked(
            ("train", "gradient_checkpointing"),
            "with gradient checkpointing",
            lambda able: str(able["checkpointing"]),
            lambda able: ["no checkpointing"],
        )


def _or(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)
