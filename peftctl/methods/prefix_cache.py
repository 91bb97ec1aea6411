"""Whether a model's cache can hold keys and values that stand before a row."""

from __future__ import annotations

from typing import Any


def check(model: Any) -> None:
    """Raises ValueError, as PEFT does of a model that a method cannot go into, where a layer keeps something else than
    keys and values, such as the state of linear attention: PEFT makes a plain cache, and fails in the first pass.
    """
    from transformers import DynamicCache
    from transformers.cache_utils import DummyLayer, DynamicLayer, DynamicSlidingWindowLayer

    plain = (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer)  # the last for layers that keep nothing
    try:
        layers = DynamicCache(config=model.config).layers
    except KeyError as error:
        raise ValueError(f"it has layers of a kind whose cache is not known: {error}") from error
    for number, layer in enumerate(layers):
        if type(layer) not in plain:
            raise ValueError(f"its layer {number} keeps something else than keys and values, which a prefix is made of")
