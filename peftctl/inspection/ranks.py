"""The rank and the alpha of each module, which PEFT's patterns may set apart from the config's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from peftctl.inspection.adapter_config import AdapterConfig
from peftctl.inspection.bounded import Tensor
from peftctl.inspection.layouts import LAYOUTS
from peftctl.inspection.patterns import first_matches


@dataclass(frozen=True)
class Ranks:
    """``ranks`` and ``alphas`` by module, as the config says them. ``matched``: False where its patterns could not be
    matched, so that neither is known. ``stacked``: there may be modules of experts, whose ranks lie one behind another.
    """

    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    matched: bool = True
    stacked: bool = False

    def agree(self, module: str, found: int) -> bool:
        """Whether a module may have the rank that was found."""
        rank = self.ranks.get(module, found)
        return rank == found or (self.stacked and rank > 0 and found % rank == 0)


def ranks_of(modules: Iterable[str], config: AdapterConfig) -> Ranks:
    """What the config says of each of the ``modules``; nothing for a method without ranks."""
    layout = LAYOUTS.get(config.peft_type)
    names = list(modules)
    if layout is None or not layout.rank:
        return Ranks()
    ranks = _by_pattern(names, config.numbers("rank_pattern"), config.whole(layout.rank))
    alphas = _by_pattern(names, config.numbers("alpha_pattern"), config.number(layout.alpha))
    if ranks is None or alphas is None:
        return Ranks(matched=False)
    found = {name: int(rank) for name, rank in (ranks | _pruned(config)).items()}
    return Ranks(found, alphas, stacked=bool(config.fields.get("target_parameters")))


def _by_pattern(names: list[str], pattern: Mapping[str, float], otherwise: float | None) -> dict[str, float] | None:
    places = first_matches(list(pattern), names)
    if places is None:
        return None
    of = list(pattern.values())
    found = {name: otherwise if at is None else of[at] for name, at in zip(names, places, strict=True)}
    return {name: value for name, value in found.items() if value is not None}


def _pruned(config: AdapterConfig) -> dict[str, int]:
    """AdaLoRA's ranks: its rank_pattern has a list for each module, with true for what it kept."""
    pattern = config.fields.get("rank_pattern")
    lists = pattern.items() if isinstance(pattern, Mapping) else ()
    return {
        name.removesuffix(".lora_E"): sum(each is True for each in kept)
        for name, kept in lists
        if isinstance(kept, list)
    }


def scale(config: AdapterConfig, module: str, parts: Mapping[str, Tensor], known: Ranks) -> float | None:
    """What the module's B A is multiplied by; None where that is not known, or its rank is not what the config says."""
    layout = LAYOUTS.get(config.peft_type)
    if layout is None or not layout.rank:
        return None
    rank = next(
        (parts[part].shape[0] for part in ("lora_A", "lora_embedding_A") if part in parts and parts[part].shape), 0
    )
    return layout.scale(config, rank, known.alphas.get(module)) if known.ranks.get(module) == rank else None
