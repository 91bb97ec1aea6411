"""What a merge writes, decided before anything is written: which tensors change, and whether weights stay tied."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError
from peftctl.merge import adapters, as_trained, stream
from peftctl.merge.adapters import Combine
from peftctl.merge.blank import blank, is_blank
from peftctl.merge.layout import layout
from peftctl.merge.shards import NAMES, Wanted, raw
from peftctl.merge.source import WEIGHTS, Source
from peftctl.merge.stream import Plan
from peftctl.merge.units import Unit, units
from peftctl.merge.values import Values
from peftctl.merge.weights import Weights
from peftctl.model import skeleton


class Together(Exception):
    """The base model has to be in memory as a whole. The text says why."""


@dataclass(frozen=True)
class Prepared:
    """``changed``: names on disk of tensors that training changed; ``config``: what config.json says otherwise."""

    plan: Plan
    values: Values
    units: tuple[Unit, ...]
    changed: tuple[str, ...]
    config: Mapping[str, Any]


def prepare(
    source: Source, config: Any, weights: Weights, asked: str | None, original: bool, combine: Combine, scratch: Path
) -> Prepared:
    """``weights``: the base's. ``asked``: the dtype to write, None for the base's own. ``original``: merge into a
    quantised base's weights as they are stored, not as training saw them.

    Raises Together where this cannot be done layer by layer, UsageError where adapter and base do not fit.
    """
    for part in source.parts:
        if reason := part.method.needs_base(part.settings, part.folder):
            raise Together(reason)
    model, given, changes = _resized(source, config)
    where = layout(model, weights.stored)
    brings = source.part.folder / WEIGHTS
    values = Values(weights, where, asked, _wide(model), given={name: (brings, key) for name, key in given.items()})
    if source.model.quantization is not None and not original:
        values = as_trained.quantised(values, config, source)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters(remove_duplicate=False)}
    brought = {name for part in source.parts for name in adapters.biases(part, shapes)}
    blank(model, lambda name: _small(name, values, model))
    peft_model = adapters.put(model, source, combine, given, scratch)
    found = tuple(units(peft_model, source.part.method))
    by_parameter = {parameter: unit for unit in found for parameter in unit.parameters}
    for parameter in by_parameter:
        if parameter in where.made:
            raise Together(f"{parameter} is made of {len(where.made[parameter])} tensors when it is loaded")
        if ".base_layer." in parameter:
            raise Together(f"several updates meet in {parameter}")
    ready = _ready(peft_model, by_parameter)
    wanted, from_parameter, untied = _wanted(list(shapes), values, by_parameter)
    if untied:
        changes["tie_word_embeddings"] = False
    plan = Plan(wanted, from_parameter, by_parameter, ready)
    trained = {*brought, *by_parameter, *values.rounded, *_selected(peft_model)}
    changed = tuple(name for name, parameter in from_parameter.items() if parameter in trained)
    return Prepared(plan, values, found, changed, changes)


def _selected(peft_model: Any) -> tuple[str, ...]:
    """The model's own parameters that were trained in place."""
    return tuple(getattr(peft_model, "selected", ()))


def _resized(source: Source, config: Any) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """The model, without weights; matrices that the adapter brings whole; what the config has to say of them."""
    model = skeleton.empty(config, source.task)
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters(remove_duplicate=False)}
    given = adapters.given(source.part, shapes)
    if not given:
        return model, {}, {}
    with Weights([source.part.folder / WEIGHTS]) as weights:
        rows = {weights.stored[key].rows for key in given.values()}
    text = config.get_text_config(decoder=True)
    if len(rows) != 1 or rows == {text.vocab_size}:
        return model, given, {}
    (text.vocab_size,) = rows
    return skeleton.empty(config, source.task), given, {"vocab_size": text.vocab_size}


def _small(name: str, values: Values, model: Any) -> Any:
    """A parameter of one dimension."""
    import torch

    if values.disk(name) is None:
        return torch.zeros(model.get_parameter(name).shape, dtype=values.work_dtype(name))
    return values.whole(name)


def _wide(model: Any) -> tuple[str, ...]:
    """Parameters that the model keeps in float32 whatever the rest is in."""
    apart = {*(model._keep_in_fp32_modules or ()), *(model._keep_in_fp32_modules_strict or ())}
    return tuple(name for name, _ in model.named_parameters() if apart & set(name.split(".")))


def _ready(peft_model: Any, by_parameter: Mapping[str, Unit]) -> dict[str, Any]:
    """Parameters outside the units that loading the adapter has given their values: biases, and what was selected."""
    selected = set(_selected(peft_model))
    found = {}
    for name, parameter in peft_model.get_base_model().named_parameters(remove_duplicate=False):
        if name not in by_parameter and not is_blank(parameter) and (parameter.dim() < 2 or name in selected):
            found[name] = parameter.data
    return found


def _wanted(
    names: list[str], values: Values, by_parameter: Mapping[str, Unit]
) -> tuple[dict[str, Wanted], dict[str, str], bool]:
    """What is written, by its name on disk; the parameter that each is; whether tied weights came apart."""
    where, stored = values.layout, values.weights.stored
    untied = {
        alias
        for alias, kept in where.tied.items()
        if (alias in by_parameter or kept in by_parameter)
        and _digest(alias, values, by_parameter) != _digest(kept, values, by_parameter)
    }
    parameters = {disk: name for name, disk in where.disk.items()}
    wanted: dict[str, Wanted] = {}
    from_parameter: dict[str, str] = {}
    for disk, tensor in stored.items():
        name = parameters.get(disk, "")
        if name in where.tied and name not in untied:
            continue  # a second copy, which is not read
        if tensor.dtype not in NAMES:
            raise Together(f"{disk} is kept as {tensor.dtype}")
        shape = values.shape(name) if name else tensor.shape
        wanted[disk] = Wanted(values.out_dtype(name) if name else tensor.dtype, shape)
        from_parameter[disk] = name
    known = {*where.disk, *where.made, *(name for name in where.tied if name not in untied)}
    for name in names:
        if name in known:
            continue
        unit = by_parameter.get(name)
        if unit is None and name not in untied and name not in values.given:
            if where.made:
                continue  # one of several that are made of the same tensors
            raise UsageError(f"{name} is neither in the base model nor in the adapter")
        wanted[name] = Wanted(values.out_dtype(name), _shape(name, values, by_parameter))
        from_parameter[name] = name
    return wanted, from_parameter, bool(untied)


def _shape(name: str, values: Values, by_parameter: Mapping[str, Unit]) -> tuple[int, ...]:
    if (unit := by_parameter.get(name)) is not None:
        return tuple(unit.base().get_parameter(name.removeprefix(f"{unit.name}.")).shape)
    return values.shape(name)


def _digest(name: str, values: Values, by_parameter: Mapping[str, Unit]) -> str:
    """A hash over a parameter's bytes as they would be written."""
    import torch

    hashed, dtype = hashlib.sha256(), getattr(torch, values.out_dtype(name))
    unit = by_parameter.get(name)
    pieces = (
        (piece for each, piece in stream.merged_pieces(unit, values) if each == name)
        if unit is not None
        else values.pieces(name)
    )
    for piece in pieces:
        hashed.update(raw(piece.to(dtype)))
    return hashed.hexdigest()
