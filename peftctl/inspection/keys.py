"""The keys of an adapter's file, sorted by what they belong to: a module's adapter, a whole saved module, nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
    explain, which PEFT would leave out without a word.
    """

    modules: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    saved: dict[str, Tensor] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)


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
    return keys


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
