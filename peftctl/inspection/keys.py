"""The keys of an adapter's file, sorted by what they belong to: a module's adapter, a whole saved module, nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from peftctl.inspection.adapter_config import AdapterConfig
from peftctl.inspection.bounded import DEEPEST, Tensor
from peftctl.inspection.layouts import LAYOUTS

PREFIX = "base_model.model."
EMBEDDINGS = frozenset({"embed_tokens", "wte", "word_embeddings", "embed_in", "tok_embeddings", "shared"})
HEADS = frozenset({"lm_head", "embed_out", "output_layer"})
# PEFT writes these two beside an adapter where it takes the vocabulary to have been changed.
_WITH_VOCABULARY = ("embed_tokens", "lm_head")


@dataclass(frozen=True)
class Keys:
    """``modules``: tensors by module and part; under "" what belongs to no module.

    ``saved``: those of modules that were trained whole, by their own name. ``unknown``: keys that the config does not
    explain, which PEFT would leave out without a word. ``stacked``: those of the modules that stand for a parameter of
    the base, of all experts mostly, whose matrices A [experts * rank, inputs] lie one behind another.
    """

    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    saved: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    stacked: set[str] = field(default_factory=set)


def sort_keys(tensors: Mapping[str, Tensor], config: AdapterConfig) -> Keys:
    """Every tensor in its place."""
    keys = Keys()
    layout = LAYOUTS.get(config.peft_type)
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if layout is None:
            module, part = _by_prefix(name, config.peft_type) if name != key else ("", key)
        else:
            module, part = _by_parts(key, name, layout.parts)
        if part:
            keys.modules.setdefault(module, {})[part] = tensor
        elif name != key and _saved(name, config):
            keys.saved[name.replace(".base_layer.", ".")] = tensor
        else:
            keys.unknown.append(key)
    if parameters := config.words("target_parameters"):
        _by_parameter(keys, parameters)
    return keys


def _by_parameter(keys: Keys, parameters: Sequence[str]) -> None:
    """Name what adapts a parameter after it. PEFT wraps the module once for each of its parameters, in the module's
    own order, so that the file has the module's name, and ``base_layer`` behind it for the inner ones.
    """
    holders: dict[str, list[str]] = {}
    for name in keys.modules:
        holders.setdefault(name.replace(".base_layer", ""), []).append(name)
    renamed: dict[str, str] = {}
    for holder, names in holders.items():
        ends = list(dict.fromkeys(each.rpartition(".")[2] for each in parameters if _holds(holder, each)))
        if not ends:
            continue
        told = _told_apart(names, ends, keys.modules) if len(names) == len(ends) else {}
        renamed |= {name: f"{holder}.{told[name]}" if name in told else name for name in names}
    keys.stacked.update(renamed.values())
    entries = {renamed.get(name, name): parts for name, parts in keys.modules.items()}
    keys.modules.clear()
    keys.modules.update(entries)


def _holds(module: str, parameter: str) -> bool:
    """Whether ``module`` may be the one of a parameter that the config names, in full or from some piece on."""
    above = parameter.rpartition(".")[0]
    return f".{module}".endswith(f".{above}") if above else "expert" in module.rpartition(".")[2]


def _told_apart(
    names: Sequence[str], ends: Sequence[str], modules: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, str]:
    """Which parameter each is of. Of two it is told by their shapes: what goes up has two outputs for every input of
    what comes down. Nothing where that is not so.
    """
    if len(ends) == 1:
        return {names[0]: ends[0]}
    down = [end for end in ends if "down" in end]
    if len(ends) != 2 or len(down) != 1:
        return {}
    (up,) = (end for end in ends if end not in down)
    for one, other in (names, reversed(names)):
        rises, falls = _sides(modules[one]), _sides(modules[other])
        if rises and falls and rises[0] == falls[1] and rises[1] == 2 * falls[0]:
            return {one: up, other: down[0]}
    return {}


def _sides(parts: Mapping[str, Tensor]) -> tuple[int, int] | None:
    """(inputs, outputs) of what LoRA's two matrices adapt."""
    down, up = parts.get("lora_A"), parts.get("lora_B")
    if down is None or up is None or not len(down.shape) == len(up.shape) == 2:
        return None
    return down.shape[1], up.shape[0]


def _by_parts(key: str, name: str, parts: Iterable[str]) -> tuple[str, str]:
    """The module and the part that a key names, or ("", "")."""
    if key in parts:  # virtual tokens belong to no module
        return "", key
    pieces = name.split(".")
    if name == key or len(pieces) > DEEPEST:
        return "", ""
    for length in (1, 2):
        part = ".".join(pieces[-length:])
        short = part.removesuffix(".weight")
        found = next((each for each in (part, short) if each in parts), "")
        if found and len(pieces) > length:
            return ".".join(pieces[:-length]), found
    return "", ""


def _by_prefix(name: str, peft_type: str) -> tuple[str, str]:
    """The same for a kind of adapter not known here: PEFT begins its tensors' names with the method's, mostly."""
    pieces = name.split(".")
    mark = peft_type.lower() + "_"
    for at, piece in enumerate(pieces):
        if piece.startswith(mark):
            return ".".join(pieces[:at]), ".".join(pieces[at:])
    return ".".join(pieces[:-1]), pieces[-1]


def _saved(name: str, config: AdapterConfig) -> bool:
    """Whether the config explains a parameter of the base's own that stands in the file."""
    module, _, parameter = name.rpartition(".")
    if parameter == "bias" and config.word("bias") not in (None, "none"):
        return True
    if any(f".{saved}." in f".{module}." for saved in config.words("modules_to_save")):
        return True
    if name.endswith(".token_adapter.trainable_tokens_delta"):
        return config.fields.get("trainable_token_indices") is not None
    return module.removesuffix(".base_layer").rpartition(".")[2] in _WITH_VOCABULARY


def layers(modules: Iterable[str]) -> list[int]:
    """The numbers of the layers that the modules are in: the first number in each name."""
    found = (re.search(r"(?:^|\.)([0-9]{1,6})(?:\.|$)", name) for name in modules)
    return sorted({int(match[1]) for match in found if match})


def some(names: Iterable[str], count: int = 3) -> str:
    """The first names and how many more there are, for a message."""
    listed = list(names)
    more = f" and {len(listed) - count:,} more" if len(listed) > count else ""
    return ", ".join(listed[:count]) + more
