"""Which tensors a GGUF file has, and what of the model's files each is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from peftctl.errors import UsageError
from peftctl.gguf.families import Family
from peftctl.gguf.settings import head_size
from peftctl.merge.weights import Stored

TURNED = re.compile(r"\.attn_([qk])\.(weight|bias)$")
EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(.*)")
ROUTER = ".ffn_gate_inp."
NORM = re.compile(r"norm\.weight$")


@dataclass(frozen=True)
class Tensor:
    """``name`` and ``shape``, outermost dimension first; ``parts``: names on disk, one after another. ``head``: rows of
    a head whose halves are interleaved, 0 where rows stay. ``add``: to every number. ``plain``: float32 whatever the
    rest is written in, which llama.cpp needs of vectors, and its makers' files have of routers.
    """

    name: str
    shape: tuple[int, ...]
    parts: tuple[str, ...]
    head: int = 0
    add: float = 0.0
    plain: bool = False

    @property
    def numbers(self) -> int:
        return prod(self.shape)


def tensors(config: Any, kind: Family, stored: Mapping[str, Stored]) -> list[Tensor]:
    """All of a model's tensors, from those ``stored`` by name.

    Raises UsageError naming a tensor that llama.cpp has no place for.
    """
    named = names(config, kind, [name for name in stored if not _left(name, config)])
    found = []
    for name, parts in named.items():
        shape = stored[parts[0]].shape
        if len(parts) > 1:
            shape = (len(parts), *shape)
        if name.endswith("ffn_gate_inp_shexp.weight"):
            shape = (prod(shape),)
        flat = len(shape) < 2
        turned = kind.interleaved and TURNED.search(name) is not None
        found.append(
            Tensor(
                name,
                shape,
                parts,
                head=head_size(config) if turned else 0,
                add=kind.norm_offset if NORM.search(name) else 0.0,
                plain=flat or ROUTER in name,
            )
        )
    return found


def names(config: Any, kind: Family, stored: list[str]) -> dict[str, tuple[str, ...]]:
    """GGUF's name of each tensor, with those that are ``stored`` it is made of: one, or one for each expert."""
    mapped = name_map(config, kind)
    found: dict[str, dict[int, str]] = {}
    strange = []
    for name in stored:
        expert = EXPERT.fullmatch(name)
        plain, number = (f"{expert[1]}.{expert[3]}", int(expert[2])) if expert else (name, 0)
        if (gguf_name := mapped.get_name(plain, try_suffixes=(".weight", ".bias"))) is None:
            strange.append(name)
        else:
            found.setdefault(gguf_name, {})[number] = name
    if strange:
        raise UsageError(
            f"gguf: llama.cpp's {kind.architecture} has no tensor for {', '.join(strange[:3])}"
            + (f" and {len(strange) - 3} more" if len(strange) > 3 else "")
        )
    return {name: tuple(parts[number] for number in sorted(parts)) for name, parts in found.items()}


def name_map(config: Any, kind: Family) -> Any:
    """The gguf package's map from names of tensors in models' files to GGUF's."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    architecture = next(each for each, name in MODEL_ARCH_NAMES.items() if name == kind.architecture)
    return get_tensor_name_map(architecture, config.num_hidden_layers)


def _left(name: str, config: Any) -> bool:
    """What is in files and no part of the model: a second copy of tied embeddings, and frequencies of old files."""
    return (config.tie_word_embeddings and name == "lm_head.weight") or name.endswith("rotary_emb.inv_freq")
