"""What a choice of targets covers, and how a recipe writes it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from peftctl.errors import PeftctlError
from peftctl.inspection import roles
from peftctl.inspection.facts import NEEDED, Choice
from peftctl.inspection.groups import of_linear
from peftctl.methods import METHODS, Method, MethodSettings
from peftctl.methods.names import matches
from peftctl.methods.parts import left_alone, outside
from peftctl.model import targets
from peftctl.model.targets import ALL_LINEAR
from peftctl.tables import table

Shapes = Mapping[str, tuple[int, int]]
FEW = 50
# What a method raises where it cannot go into a model, or has a setting without a default.
REFUSALS = (PeftctlError, NotImplementedError, ValueError, TypeError, AttributeError)

# What PEFT refuses (its _check_lora_target_modules_mamba): these methods, in these types of model, on these layers.
BESIDE_STATE = {"LORA", "ADALORA", "XLORA", "RANDLORA"}
STATE_SPACE = {"falcon_h1", "mamba", "mamba2", "falcon_mamba", "nemotron_h"}
STATE_SPACE_LAYERS = {"out_proj", "conv1d"}
CONV1D = "Conv1D"  # GPT-2's transposed layers
# What stands at the top of a model that sorts texts or tokens into classes.
CLASSIFIERS = ("score", "classifier", "pre_classifier", "classification_head", "qa_outputs")


@dataclass(frozen=True)
class Default:
    """A method's own choice in a model; ``why_not`` where it has none there. Empty for a method without targets."""

    settings: MethodSettings | None = None
    matched: Shapes | None = None
    why_not: str = ""


class Resolver:
    """Targets in one model, each choice resolved once: methods by the dozen choose the same."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.linear = targets.linear_shapes(model)
        self.left_alone: tuple[str, ...] = ()
        with suppress(NotImplementedError, AttributeError):  # a model without embeddings of text
            self.left_alone = left_alone(model)
        self._known: dict[tuple[tuple[str, ...], frozenset[str] | None], Shapes] = {}

    def universe(self, method: Method | None = None) -> list[str]:
        """The modules that ``targets`` may name: linear layers, or what the method goes into."""
        own = method.targetable(self.model) if method else None
        return outside(self.linear if own is None else own, self.left_alone)

    def matched(self, method: Method, settings: MethodSettings) -> Shapes:
        """What ``targets.of`` gives, in a fraction of the time. Raises UsageError where an entry matches nothing."""
        wanted = tuple(settings.wanted if settings.wanted is not None else self._chosen(method))
        own = method.targetable(self.model)
        key = (wanted, None if own is None else frozenset(own))
        if key not in self._known:
            self._known[key] = self._resolved(wanted, own)
        return method.narrow(self.model, settings, self._known[key])

    def _resolved(self, wanted: tuple[str, ...], own: Shapes | None) -> Shapes:
        found = targets.resolve(self.model, wanted, own)
        return {name: found[name] for name in found if not classifies(name)} if wanted == (ALL_LINEAR,) else found

    def _chosen(self, method: Method) -> Sequence[str]:
        """A method's own choice; in few words where it is all names, since each is held against each module."""
        chosen, there = outside(method.choose(self.model), self.left_alone), self.universe(method)
        return paste(chosen, there) if len(chosen) > FEW and set(chosen) <= set(there) else chosen

    def default(self, method: Method) -> Default:
        """What ``method`` goes into unless the recipe says otherwise."""
        if (seen := self._seen(method)) != "yes":
            return Default(why_not=seen.split(": ", 1)[-1])
        if method.settings.needed:
            return Default(why_not=NEEDED)
        try:
            settings = method.resolve(method.settings.model_validate({}))
            matched = self.matched(method, settings)
        except REFUSALS as error:
            return Default(why_not=reason(error))
        refused = self._refused(method, matched)
        return Default(why_not=refused) if refused else Default(settings, matched)

    def _seen(self, method: Method) -> str:
        """What came of it on this type of model where that was tried, or what went wrong."""
        families, kind = _families(method), self.model.config.model_type
        if kind not in families and any("model type" in said for said in families.values()):
            return f"PEFT has it for some types of model only, and it was not tried on {kind}"
        return families.get(kind, "yes")

    def _refused(self, method: Method, matched: Shapes) -> str:
        """Why PEFT refuses one of the method's targets, or ""."""
        kind = self.model.config.model_type
        types = {type(self.modules[name]).__name__ for name in matched}
        if CONV1D in types and any(CONV1D in said for said in _families(method).values()):
            return f"PEFT puts none on layers of the type {CONV1D}"
        if method.peft_type not in BESIDE_STATE or kind not in STATE_SPACE:
            return ""
        last = sorted({name.rpartition(".")[2] for name in matched} & STATE_SPACE_LAYERS)
        return f"PEFT puts none on {', '.join(last)} in {kind}: name other targets" if last else ""

    def weights(self, names: Collection[str]) -> int:
        """How many parameters these modules have of their own."""
        return sum(p.numel() for name in names for p in self.modules[name].parameters(recurse=False))


def _families(method: Method) -> Mapping[str, str]:
    """What came of the method on each type of model that it was tried on."""
    found: Mapping[str, str] = table("capabilities")["methods"].get(method.name, {}).get("families", {})
    return found


def classifies(name: str) -> bool:
    """Whether a layer is a classifier's, which starts anew and is trained whole: PEFT's all-linear leaves it out."""
    return name.partition(".")[0] in CLASSIFIERS


def reason(error: Exception) -> str:
    """Why a method cannot go into a model, in a line."""
    said = error.message if isinstance(error, PeftctlError) else str(error)
    return said.strip().split("\n")[0][:300] or type(error).__name__


def choices(resolver: Resolver, defaults: Mapping[str, Default]) -> tuple[Choice, ...]:
    """``all-linear`` first, then common choices, then what methods choose that is none of these."""
    found: dict[frozenset[str], Choice] = {}
    for name, entries, names in _common(resolver):
        if names and frozenset(names) not in found:
            found[frozenset(names)] = _choice(resolver, name, entries or paste(names, resolver.universe()), names)
    for method, chosen in defaults.items():
        if chosen.matched:
            key = frozenset(chosen.matched)
            if key not in found:
                entries = paste(key, resolver.universe(METHODS[method]))
                found[key] = _choice(resolver, f"{method}'s own", entries, key)
            found[key] = replace(found[key], default_of=(*found[key].default_of, method))
    return tuple(found.values())


def _choice(resolver: Resolver, name: str, entries: tuple[str, ...], names: Collection[str]) -> Choice:
    left_out = {of_linear(roles.collapsed(each)) for each in set(resolver.universe()) - set(names)}
    ordered = tuple(role for role in roles.ORDER if role in left_out and role != roles.HEAD)
    return Choice(name, entries, len(names), resolver.weights(names), ordered)


def _common(resolver: Resolver) -> Iterator[tuple[str, tuple[str, ...], set[str]]]:
    """Each common choice's name, what a recipe writes where that is known, and the layers it means."""
    every = {name for name in targets.resolve(resolver.model, [ALL_LINEAR]) if not classifies(name)}
    yield ALL_LINEAR, (ALL_LINEAR,), every
    own = {name: of_linear(roles.collapsed(name)) for name in every if not roles.part(roles.collapsed(name))}
    yield "language model", (), set(own)
    attention = {name for name, role in own.items() if role in roles.ATTENTION}
    yield "attention", (), attention
    asked = {name for name in attention if {"query", "value"} & {*own[name].split(", ")}}
    yield f"query and value{' (fused)' if any(', ' in own[name] for name in asked) else ''}", (), asked
    yield "feed-forward", (), {name for name, role in own.items() if role in (*roles.FEED_FORWARD, roles.EXPERTS)}


def paste(names: Collection[str], universe: Collection[str]) -> tuple[str, ...]:
    """The shortest entries of ``targets`` that match ``names`` and nothing else of ``universe``."""
    wanted, entries, covered = set(names), list[str](), set[str]()
    for name in (each for each in universe if each in wanted):
        if name in covered:
            continue
        entry = next((each for each in _entries(name) if _only(each, universe, wanted)), name)
        entries.append(entry)
        covered |= {each for each in universe if matches(entry, each)}
    return tuple(entries)


def _entries(name: str) -> Iterator[str]:
    """What may stand for a module and its like in other blocks: the end of its name, or a pattern."""
    parts = roles.collapsed(name).split(".")
    numbers = [index for index, part in enumerate(parts) if part == "*"]
    plain = len(parts) - (numbers[-1] + 1 if numbers else 0)
    for length in range(1, plain + 1):
        yield ".".join(parts[-length:])
    if numbers and plain:
        yield ".".join(["*[0-9]", *parts[-plain:]])
    if numbers:
        yield ".".join([*parts[: numbers[0] + 1], parts[-1]])
        yield ".".join(parts)


def _only(entry: str, universe: Collection[str], wanted: Collection[str]) -> bool:
    if not entry or entry == "*":
        return False
    return all(each in wanted for each in universe if matches(entry, each))
