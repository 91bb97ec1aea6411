"""Ways of fine-tuning. To add one: a file here and a line in the table."""

from __future__ import annotations

from peftctl.methods import (
    adalora,
    bitfit,
    full,
    generic,
    ia3,
    ln_tuning,
    loha,
    lokr,
    lora,
    p_tuning,
    prefix_tuning,
    prompt_tuning,
    xlora,
)
from peftctl.methods.contract import Anatomy, BaseName, DataFacts, LowRank, Method, MethodSettings

_ALL: tuple[Method, ...] = (
    lora.METHOD,
    ia3.METHOD,
    adalora.METHOD,
    loha.METHOD,
    lokr.METHOD,
    prompt_tuning.METHOD,
    p_tuning.METHOD,
    prefix_tuning.METHOD,
    ln_tuning.METHOD,
    bitfit.METHOD,
    full.METHOD,
    xlora.METHOD,
    *generic.GENERIC.values(),
)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}
OWN = [name for name in METHODS if name not in generic.GENERIC]

__all__ = ["METHODS", "OWN", "Anatomy", "BaseName", "DataFacts", "LowRank", "Method", "MethodSettings"]
