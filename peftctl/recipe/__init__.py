"""A recipe: its settings, how it is read from YAML, how its open choices are made, and how it is written."""

from __future__ import annotations

from peftctl.recipe.check import check
from peftctl.recipe.dump import dump, dump_resolved
from peftctl.recipe.load import load
from peftctl.recipe.schema import Recipe

__all__ = ["Recipe", "check", "dump", "dump_resolved", "load"]
