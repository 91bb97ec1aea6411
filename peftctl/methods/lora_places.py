"""Where LoRA's settings go in a model: their words as full names of its modules, parameters and tokens.

PEFT would match them as regular expressions and ends of names, and leave out what matches nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from peftctl.errors import UsageError
from peftctl.methods.lora_settings import LoraSettings
from peftctl.methods.names import matches, may_meet, picked, surely_within, within
from peftctl.methods.parts import heads, left_alone, outside

ALL_LINEAR = "all-linear"


def contradictions(settings: LoraSettings) -> Iterator[tuple[str, str, str]]:
    """What the words alone say against each other, whatever the model: setting, what is wrong, and what goes."""
    adapted = (*settings.targets, *settings.target_parameters)
    for whole in settings.modules_to_save:
        if inner := [entry for entry in adapted if surely_within(entry, whole)]:
            yield "modules_to_save", f"{whole!r} is trained whole, and {inner[0]!r} is adapted", "one of the two"
    if ALL_LINEAR in adapted:
        return
    for setting in ("rank_pattern", "alpha_pattern"):
        for entry in getattr(settings, setting) or {}:
            if not any(may_meet(entry, other) for other in adapted):
                yield setting, f"{entry!r} matches no target", ", ".join(adapted)


def targetable(model: Any) -> dict[str, tuple[int, int]]:
    """Every linear layer and every embedding, with (inputs, outputs)."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    shapes: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            shapes[name] = (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):
            shapes[name] = (module.weight.shape[0], module.weight.shape[1])
        elif isinstance(module, nn.Embedding):
            shapes[name] = (module.num_embeddings, module.embedding_dim)
    return shapes


def embeddings(model: Any) -> list[str]:
    """Every embedding."""
    from torch import nn

    return [name for name, module in model.named_modules() if isinstance(module, nn.Embedding)]


def narrowed(model: Any, settings: LoraSettings, matched: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The targets that ``layers`` and ``modules_to_save`` leave. Raises UsageError where an entry is left with none,
    or would be adapted and trained whole."""
    for name in embeddings(model):
        if name in matched and (others := shared(model, name)):
            raise UsageError(
                f"method.targets: {name} shares its weight with {others[0]}, so an adapter on it would be merged "
                "into both",
                f"modules_to_save: {name.rsplit('.', 1)[-1]} trains the matrix whole, and trainable_tokens rows of it",
            )
    entries = [entry for entry in settings.targets if entry != ALL_LINEAR]
    kept = in_layers(model, settings, matched)
    for entry in entries:
        if not any(matches(entry, name) for name in kept):
            raise UsageError(f"method.targets: {entry!r} matches nothing in the layers that method.layers names")
    for whole in trained_whole(model, settings):
        for name in [name for name in kept if within(name, whole)]:
            if any(matches(entry, name) for entry in entries):
                raise UsageError(f"method.modules_to_save: {name} is trained whole, so it can be no target")
            kept.remove(name)
    if not kept and not settings.target_parameters:
        raise UsageError("method.targets: none is left beside method.layers and method.modules_to_save")
    return {name: matched[name] for name in kept}


def in_layers(model: Any, settings: LoraSettings, names: Collection[str]) -> list[str]:
    """Those of ``names`` that are in the layers that the settings name; all of them where they name none."""
    if settings.layers is None:
        return list(names)
    prefix, count = _decoder_layers(model)
    if missing := [number for number in settings.layers if number >= count]:
        raise UsageError(
            f"method.layers: there is no layer {missing[0]} (found {missing[0]}); allowed: 0 to {count - 1}"
        )
    return [name for name in names if any(within(name, f"{prefix}.{number}") for number in settings.layers)]


def _decoder_layers(model: Any) -> tuple[str, int]:
    """The name of the list that holds the decoder's layers, and how many they are."""
    from torch import nn

    decoder = model.get_decoder()
    count: int = model.config.get_text_config().num_hidden_layers
    lists = [
        module for module in decoder.modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]  # outermost first
    if not lists:
        raise UsageError(f"method.layers: no list of {count} layers is found in {type(model).__name__}")
    return _name(model, lists[0]), count


def _name(model: Any, module: Any) -> str:
    names: dict[int, str] = {id(each): name for name, each in model.named_modules()}
    return names[id(module)]


def shared(model: Any, name: str) -> list[str]:
    """The other modules that have the weight of module ``name`` for theirs."""
    weight = model.get_submodule(name)._parameters.get("weight")
    return [
        other
        for other, module in model.named_modules()
        if other != name and weight is not None and module._parameters.get("weight") is weight
    ]


def trained_whole(model: Any, settings: LoraSettings) -> list[str]:
    """The modules that are trained whole, the task's head among them. Raises UsageError for one that cannot be."""
    if not settings.modules_to_save:
        return list(heads(model))
    setting = "method.modules_to_save"
    names = [name for name, module in model.named_modules() if name and any(True for _ in module.parameters())]
    found = picked(setting, settings.modules_to_save, outside(names, left_alone(model)), "module")
    for name in found:
        module = model.get_submodule(name)
        if outer := [other for other in found if other != name and within(name, other)]:
            raise UsageError(f"{setting}: {name} is in {outer[0]}, which is trained whole already")
        if any(not parameter.is_floating_point() for parameter in module.parameters()):
            raise UsageError(f"{setting}: {name} is quantised, so it cannot be trained")
        if type(module).forward is _no_forward():
            raise UsageError(f"{setting}: {name} is a list of modules; name those in it")
        for inner, _ in module.named_modules(prefix=name):
            others = [other for other in shared(model, inner) if not within(other, name)]
            if others and not (inner == name and _stays_tied(model, name)):
                raise UsageError(
                    f"{setting}: {inner} shares its weight with {others[0]}, and cannot be trained apart from it",
                    *([f"name {others[0]}, and both are trained as one"] if _stays_tied(model, others[0]) else []),
                )
    return [*found, *(name for name in heads(model) if name not in found)]


def _no_forward() -> Any:
    from torch import nn

    return nn.Module.forward


def _stays_tied(model: Any, name: str) -> bool:
    """Whether PEFT keeps the head one with the module: it does with an input embedding called as in most models."""
    from peft.utils.constants import EMBEDDING_LAYER_NAMES

    last = name.rsplit(".", 1)[-1]
    return model.get_submodule(name) is model.get_input_embeddings() and last in EMBEDDING_LAYER_NAMES


def adapted_parameters(model: Any, settings: LoraSettings) -> dict[str, tuple[int, ...]]:
    """The experts' weights that get an adapter, with their shapes."""
    if not settings.target_parameters:
        return {}
    setting = "method.target_parameters"
    shapes = dict(_parameters(model))
    reached = outside(shapes, left_alone(model))
    wanted = picked(setting, settings.target_parameters, reached, "experts' weight")
    found = in_layers(model, settings, wanted)
    if not found:
        raise UsageError(f"{setting}: none is in the layers that method.layers names")
    for whole in trained_whole(model, settings):
        if inner := [name for name in found if within(name, whole)]:
            raise UsageError(f"{setting}: {inner[0]} is in {whole}, which is trained whole")
    return {name: shapes[name] for name in found}


def _parameters(model: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Stacked weights [experts, ., .] and plain ones [., .] of modules that are none of torch's own."""
    linear = targetable(model)
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.nn") or name in linear or not name:
            continue
        for last, parameter in module.named_parameters(recurse=False):
            if parameter.is_floating_point() and (parameter.ndim == 3 or (parameter.ndim == 2 and last == "weight")):
                yield f"{name}.{last}", tuple(parameter.shape)


def tokens(model: Any, settings: LoraSettings) -> tuple[str, list[int]]:
    """The input embedding's name and the ids of the tokens whose rows are trained."""
    setting = "method.trainable_tokens"
    embedding = model.get_input_embeddings()
    name, size = _name(model, embedding), embedding.num_embeddings
    found = {
        token: token if isinstance(token, int) else _id(model.config._name_or_path, token)
        for token in settings.trainable_tokens
    }
    faults = [f"{setting}: {number}" for number in found.values() if isinstance(number, str)]
    ids = [number for number in found.values() if isinstance(number, int)]
    if beyond := [str(number) for number in ids if number >= size]:
        faults.append(f"{setting}: there is no token {' or '.join(beyond)}; allowed: 0 to {size - 1}")
    if name in trained_whole(model, settings):
        faults.append(f"{setting}: {name} is trained whole, by method.modules_to_save")
    if any(matches(entry, name) for entry in settings.targets):
        faults.append(f"{setting}: {name} is a target too; allowed: one of the two")
    if faults:
        raise UsageError("\n".join(faults))
    return name, list(dict.fromkeys(ids))


@functools.lru_cache(maxsize=256)
def _id(folder: str, text: str) -> int | str:
    """The id of the one token that ``text`` is to the tokenizer in ``folder``, or why it is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise UsageError(
            f"method.trainable_tokens: {text!r} needs the model's tokenizer, which cannot be loaded", "write its id"
        ) from error
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) == 1:
        return ids[0]
    number: int | None = tokenizer.get_vocab().get(text)
    if number is None:
        return f"{text!r} is {len(ids)} tokens of this model; allowed: single ones"
    return number
