"""Keys and values of attention as tensors by name, and as transformers' caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PAST, PRESENT = "past_key_values", "present"
BOTH = ("key", "value")


def names(side: str, layers: int, part: str = "") -> tuple[str, ...]:
    """Of every layer its key and value: ``side``.N.key; of one ``part`` of a model, ``side``.N.part.key."""
    middle = f".{part}" if part else ""
    return tuple(f"{side}.{layer}{middle}.{each}" for layer in range(layers) for each in BOTH)


def tensors(cache: Any) -> tuple[Any, ...]:
    """Key and value of every layer that keeps some."""
    kept = [layer for layer in cache.layers if layer.is_initialized]
    return tuple(each for layer in kept for each in (layer.keys, layer.values))


def of(values: Sequence[Any]) -> Any:
    """A cache that holds these. None of its layers forgets what has left a window: masks see to that, and the graph
    then has no place where it counts."""
    from transformers import DynamicCache

    return DynamicCache(list(zip(values[::2], values[1::2], strict=True)))


def empty(shapes: Mapping[str, tuple[Any, ...]], rows: int) -> dict[str, Any]:
    """Of the inputs of a graph its past, with nothing in it."""
    import numpy as np

    return {
        name: np.zeros((rows, shape[1], 0, shape[3]), np.float32)
        for name, shape in shapes.items()
        if name.startswith(PAST)
    }


def grown(said: Mapping[str, Any]) -> dict[str, Any]:
    """What a pass leaves as what the next one takes."""
    return {
        PAST + name.removeprefix(PRESENT): values for name, values in said.items() if name.startswith(f"{PRESENT}.")
    }
