"""A method in words: its module's own, and its settings with their defaults."""

from __future__ import annotations

import inspect
import sys

from peftctl.methods.contract import Method


def described(method: Method) -> str:
    """What the method is, with its formula and paper, and every setting with its default."""
    text = inspect.cleandoc(sys.modules[type(method).__module__].__doc__ or "")
    lines = [
        f"  {name} = {default(declared)}" for name, declared in method.settings.model_fields.items() if name != "name"
    ]
    return "\n".join([text, "", f"Settings (learning_rate {method.learning_rate:g}):", *lines, ""])


def default(declared: object) -> str:
    """A setting's default as a recipe would write it."""
    value = getattr(declared, "default", None)
    if value is None:
        return "(see docs/recipe.md)"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
