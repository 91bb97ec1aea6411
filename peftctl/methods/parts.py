"""What of a model rows of text go through. One that also sees or hears has parts that they never reach."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from peftctl.methods.names import within


def left_alone(model: Any) -> tuple[str, ...]:
    """The parts of ``model``, a base as it comes, that rows of text never go through: by full name, the outermost
    alone. None in a model of text.

    By the model's own account: all but its text decoder, embeddings and head; in the decoder what holds a model of
    another kind; and the layers that attend to images alone.
    """
    modalities = getattr(model, "input_modalities", "text")
    if modalities == "text" or set(modalities) <= {"text"}:
        return ()
    names = {id(module): name for name, module in model.named_modules()}
    decoder = model.get_decoder()
    reached = {
        names[id(module)]
        for module in (decoder, model.get_input_embeddings(), model.get_output_embeddings())
        if id(module) in names
    }
    start = names[id(decoder)]
    return (*_beside(model, "", reached), *_foreign(decoder, start), *_for_images(decoder, start))


def outside(names: Iterable[str], parts: Collection[str]) -> list[str]:
    """Those of ``names`` that are in none of ``parts``."""
    return [name for name in names if not any(within(name, part) for part in parts)]


def _beside(module: Any, name: str, reached: Collection[str]) -> Iterator[str]:
    """The outermost modules in ``module`` that have parameters and are neither in nor around what is reached."""
    if any(within(name, each) for each in reached if each) or "" in reached:
        return
    if name and not any(within(each, name) for each in reached):
        if next(module.parameters(), None) is not None:
            yield name
        return
    for child, inner in module.named_children():
        yield from _beside(inner, f"{name}.{child}" if name else child, reached)


def _foreign(decoder: Any, name: str) -> Iterator[str]:
    """The decoder's children that hold a model with a config of another kind."""
    from transformers import PreTrainedModel

    kinds = {type(decoder.config), type(decoder.config.get_text_config())}
    for child, inner in decoder.named_children():
        if any(isinstance(each, PreTrainedModel) and type(each.config) not in kinds for each in inner.modules()):
            yield f"{name}.{child}" if name else child


def _for_images(model: Any, name: str) -> Iterator[str]:
    """The layers in ``model`` that attend to what an image gives, and are passed over where there is none."""
    from torch import nn

    config = model.config.get_text_config()
    numbers = getattr(config, "cross_attention_layers", None)
    if not numbers:
        return
    for inner, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            yield from (".".join(filter(None, (name, inner, str(number)))) for number in numbers)
            return
