"""Ways of fine-tuning. To add one: a file here and a line in the table."""

from __future__ import annotations

from peftctl.methods import adalora, ia3, loha, lokr, lora, p_tuning, prefix_tuning, prompt_tuning
from peftctl.methods.contract import Anatomy, DataFacts, LowRank, Method, MethodSettings

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        lora.METHOD,
        ia3.METHOD,
        adalora.METHOD,
        loha.METHOD,
        lokr.METHOD,
        prompt_tuning.METHOD,
        p_tuning.METHOD,
        prefix_tuning.METHOD,
    )
}

__all__ = ["METHODS", "Anatomy", "DataFacts", "LowRank", "Method", "MethodSettings"]
