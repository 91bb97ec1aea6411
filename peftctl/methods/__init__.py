"""The methods that recipes can name. To add one: a file here and a line in the table."""

from __future__ import annotations

from peftctl.methods import lora
from peftctl.methods.contract import DataFacts, LowRank, Method, MethodSettings

METHODS: dict[str, Method] = {method.name: method for method in (lora.METHOD,)}

__all__ = ["METHODS", "DataFacts", "LowRank", "Method", "MethodSettings"]
