"""A model without weights, on the meta device: every module with its shapes, in full depth or cut to some layers."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peftctl.errors import UsageError
from peftctl.methods.parts import mark_heads, mark_unused
from peftctl.model.auto import auto_class
from peftctl.tasks import Task

LEAST = 2  # layers: what one does to the next one's weights shows from two on
MOST_KINDS = 8
# What transformers' configs call the number of their layers.
LAYERS = re.compile(r"n_layers?|depth|(num_)?(hidden_|encoder_|decoder_)?layers")
# The layers that begin an expert model without experts.
DENSE = "first_k_dense_replace"


@dataclass(frozen=True)
class Skeleton:
    """``whole`` in full depth; ``small``, its first layers: two, or as many as show every kind there is."""

    whole: Any
    small: Any


def build(config: Any, task: Task) -> Skeleton:
    """Both, of the class that ``load.load_model`` loads.

    Raises UsageError where that is code of the model's own, and else whatever transformers' code raises of ``config``.
    """
    auto = auto_class(task, config)
    if type(config) not in auto._model_mapping and auto.__name__ in (getattr(config, "auto_map", None) or {}):
        raise UsageError("the model brings its own code, which is run when it is loaded")
    whole = empty(config, task)
    try:
        return Skeleton(whole, empty(cut(config), task))
    except Exception:  # a config that cannot be cut, whatever its code makes of it; the whole one will do
        return Skeleton(whole, copy.deepcopy(whole))


def empty(config: Any, task: Task) -> Any:
    """The model of ``config`` in full depth."""
    import torch

    plain = copy.deepcopy(config)
    for part in (plain, plain.get_text_config(decoder=True)):
        part.__dict__.pop("quantization_config", None)
    task.configure(plain)
    with torch.device("meta"):
        model = auto_class(task, config).from_config(plain).requires_grad_(False).eval()
    if task.head:
        mark_heads(model)
    mark_unused(model, task.unused)
    return model


def cut(config: Any) -> Any:
    """``config`` with so few layers that building on it takes no time, every list that has one entry a layer too."""
    said = config.to_dict()
    for part in _parts(said):
        for name, count in [(name, value) for name, value in part.items() if LAYERS.fullmatch(name)]:
            if isinstance(count, int) and count > LEAST:
                depth = _enough(part, count)
                for other, value in part.items():
                    if isinstance(value, list) and len(value) == count:
                        part[other] = value[:depth]
                part[name] = depth
    made = type(config).from_dict(said)
    made._name_or_path = config._name_or_path
    return made


def _parts(said: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A config and those in it: of the text, of the images."""
    yield said
    for value in said.values():
        if isinstance(value, dict) and "model_type" in value:
            yield from _parts(value)


def _enough(part: dict[str, Any], count: int) -> int:
    """The fewest first layers, two or more, among which is one of every kind that the config's lists name."""
    dense = part.get(DENSE)
    depth = max(LEAST, dense + 1 if isinstance(dense, int) else 0)
    for value in part.values():
        if isinstance(value, list) and len(value) == count:
            words = [str(each) for each in value]
            if len(set(words)) <= MOST_KINDS:
                depth = max(depth, *(words.index(word) + 1 for word in set(words)))
    return min(depth, count)
