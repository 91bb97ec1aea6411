"""How many parameters each method trains in a model, exactly, by its own formula."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from peftctl.inspection.coverage import Default, Resolver, reason
from peftctl.inspection.facts import COUNTED_BY_PEFT, SIZES, Count
from peftctl.methods import METHODS, Method
from peftctl.model import attach

# What a method's size is called in its settings; one that has none of these has no size.
SETTINGS = ("rank", "tokens", "r", "num_virtual_tokens")


def counts(resolver: Resolver, defaults: Mapping[str, Default], *, by_peft: bool) -> tuple[Count, ...]:
    """A count for every method; where only PEFT can count, only with ``by_peft``.

    Some methods have no formula: PEFT is put into layers of the model's shapes and counts. Importing it takes longer
    than all the rest, and building on hundreds of layers for each such method a minute.
    """
    with warnings.catch_warnings(), _with_peft() if by_peft else _without_peft():
        return tuple(_count(resolver, METHODS[name], chosen) for name, chosen in defaults.items())


@contextmanager
def _with_peft() -> Iterator[None]:
    warnings.simplefilter("ignore")  # what PEFT remarks on layers that are never used
    yield


@contextmanager
def _without_peft() -> Iterator[None]:
    """Within this context PEFT is not there to be imported, whether or not it has been: None is the import system's own
    word for that."""
    there = sys.modules.get("peft")
    sys.modules["peft"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if there is None:
            del sys.modules["peft"]
        else:
            sys.modules["peft"] = there


def _count(resolver: Resolver, method: Method, chosen: Default) -> Count:
    setting = next((each for each in SETTINGS if each in method.settings.model_fields), "")
    if chosen.settings is None or chosen.matched is None:
        return Count(method.name, setting, why_not=chosen.why_not)
    why_not = ""
    for sizes in ([(setting, SIZES)] if setting else []) + [("", (0,))]:
        try:
            trained = {size: _trained(resolver, method, chosen, sizes[0], size) for size in sizes[1]}
            if not any(trained.values()):
                return Count(method.name, sizes[0], why_not="trains nothing in this model")
            return Count(method.name, sizes[0], trained)
        except ModuleNotFoundError:
            return Count(method.name, setting, why_not=COUNTED_BY_PEFT)
        except Exception as error:  # the ways in which PEFT refuses are as many as its methods
            why_not = why_not or reason(error)
    return Count(method.name, setting, why_not=why_not)


def _trained(resolver: Resolver, method: Method, chosen: Default, setting: str, size: int) -> int:
    assert chosen.settings is not None
    assert chosen.matched is not None
    settings = method.resolve(method.settings.model_validate({setting: size})) if setting else chosen.settings
    names = chosen.matched if settings == chosen.settings else resolver.matched(method, settings)
    anatomy = attach.anatomy(resolver.model, names, method.beside(resolver.model, settings))
    return method.parameters(settings, anatomy)
