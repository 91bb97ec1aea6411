"""What of a model rows of text go through. One that also sees or hears has parts that they never reach."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from peftctl.methods.names import within


def left_alone(model: Any) -> tuple[str, ...]:
    """The parts of ``model``, a base as it comes, that rows of text never go through: by full name, the outermost
    alone. None in a model of text.

    By the model's own account: all but its text decoder, embeddings and head; in the decoder what holds a model of
    another kind; and the layers that attend to images alone. And what the task has no use for.
    """
    return (*getattr(model, UNUSED, ()), *_never_reached(model))


def _never_reached(model: Any) -> tuple[str, ...]:
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


# Where loading notes the modules that a task has no use for.
UNUSED = "_peftctl_unused"
# Where loading notes the modules of a model's head that are trained whole, beside whatever the method trains.
HEADS = "_peftctl_heads"


def heads(model: Any) -> tuple[str, ...]:
    """The modules of ``model``, a base as it comes, that are trained whole and saved: a task's head, and what else the
    checkpoint did not have. None where the task uses the model as it is."""
    found: tuple[str, ...] = getattr(model, HEADS, ())
    return found


def mark_unused(model: Any, names: Collection[str]) -> None:
    """Note that those of the model's children that are called so take no part in what the task asks it."""
    setattr(model, UNUSED, tuple(name for name, _ in model.named_children() if name in names))


def mark_heads(model: Any, new: Collection[str] = ()) -> None:
    """Note what ``heads`` will say: the modules beside the body of the model, and those in it whose parameters, all of
    them, are ``new``: the outermost alone."""
    beside = [name for name, module in _beside_body(model) if next(module.parameters(), None) is not None]
    made: list[str] = []
    for name, module in model.named_modules():
        inside = [f"{name}.{each}" for each, _ in module.named_parameters()]
        if name and inside and set(inside) <= set(new) and not any(within(name, other) for other in (*beside, *made)):
            made.append(name)
    setattr(model, HEADS, (*beside, *made))


def _beside_body(model: Any) -> list[tuple[str, Any]]:
    """The model's children but the one that reads; where that is none of its own, but those that read."""
    from transformers import PreTrainedModel

    children, body = list(model.named_children()), model.base_model_prefix
    if body in dict(children):
        return [(name, module) for name, module in children if name != body]
    embeddings = model.get_input_embeddings()
    return [
        (name, module)
        for name, module in children
        if not isinstance(module, PreTrainedModel) and module is not embeddings
    ]


def head_shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """The parameters of the heads by their full names."""
    return {
        f"{name}.{last}": tuple(parameter.shape)
        for name in heads(model)
        for last, parameter in model.get_submodule(name).named_parameters()
    }


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
