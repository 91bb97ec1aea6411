"""What is wrong with an adapter, or worth a look before it is used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from peftctl.inspection.adapter_config import AdapterConfig
from peftctl.inspection.bounded import Tensor
from peftctl.inspection.fit import Base
from peftctl.inspection.keys import EMBEDDINGS, HEADS, Keys, some
from peftctl.inspection.layouts import LAYOUTS, shapes, sizes
from peftctl.inspection.patterns import first_matches
from peftctl.inspection.ranks import Ranks
from peftctl.inspection.update import MOST_RANK, Module

LARGEST = 3.4028234663852886e38  # of float32
# Words that PEFT takes in the place of a regular expression.
NO_PATTERNS = ("all-linear", "dummy-target-modules")


@dataclass(frozen=True)
class Problem:
    """``kind`` is for programs. An ``error`` means that the adapter will not load, or does not do what it should."""

    kind: str
    level: Literal["error", "warning", "note"]
    message: str


def of_config(config: AdapterConfig) -> Iterator[Problem]:
    """What the config alone tells."""
    for wrong in config.wrong():
        yield Problem("field", "error", f"adapter_config.json: {wrong}")
    if unknown := config.unknown():
        yield Problem("unknown_fields", "warning", f"fields that peft does not know: {', '.join(unknown)}")
    if not config.word("base_model_name_or_path"):
        yield Problem("no_base", "warning", "base_model_name_or_path is missing, so that nothing says what it is for")
    if saved := config.words("modules_to_save"):
        yield Problem("modules_to_save", "note", f"brings whole modules of its own, not only updates: {some(saved)}")


def of_keys(keys: Keys, config: AdapterConfig, known: Ranks) -> Iterator[Problem]:
    """What the config and the file's keys tell of each other."""
    layout = LAYOUTS.get(config.peft_type)
    if keys.unknown:
        yield Problem(
            "unknown_keys",
            "error",
            f"{len(keys.unknown):,} keys that the config does not explain, so that peft leaves them out: "
            f"{some(keys.unknown)}",
        )
    if not known.matched:
        yield Problem(
            "pattern", "warning", "rank_pattern or alpha_pattern is no regular expression, or takes too long to match"
        )
    if said := _unmatched(keys, config):
        yield Problem("targets", "error", said)
    if layout is None:
        return
    if not any(keys.modules.values()):
        yield Problem("missing_keys", "error", "no tensor in it is of this method")
    yield from _missing(keys, config)
    faults = []
    for module, parts in keys.modules.items():
        letters, fault = sizes(layout, shapes(parts))
        found = letters.get("r")
        if fault:
            faults.append(f"{module}: {fault}")
        elif found is not None and not known.agree(module, found):
            faults.append(f"{module}: of rank {found}, where the config says {known.ranks[module]}")
    faults += _of_prompt(keys, config)
    if faults:
        yield Problem("shapes", "error", f"shapes that contradict each other: {some(faults)}")


def _missing(keys: Keys, config: AdapterConfig) -> Iterator[Problem]:
    layout = LAYOUTS[config.peft_type]
    halves = [
        f"{module} has {', '.join(parts)} without {' and '.join(lacking)}"
        for module, parts in keys.modules.items()
        if (lacking := _lacking(layout.needed, parts))
    ]
    if halves:
        yield Problem("missing_keys", "error", f"parts are missing: {some(halves)}")
    named = [name for name in config.words("target_modules") if not _named(name, keys.modules)]
    if named:
        yield Problem("missing_keys", "error", f"targets of the config of which the file has nothing: {some(named)}")
    lost = [name for name in config.words("modules_to_save") if not any(f".{name}." in f".{key}" for key in keys.saved)]
    # PEFT names every head that a classifier may have.
    if lost and not (set(lost) <= {"classifier", "score"} and len(lost) < len(config.words("modules_to_save"))):
        yield Problem("missing_keys", "error", f"modules_to_save of which the file has nothing: {some(lost)}")
    if config.flag("use_dora"):
        plain = [
            name for name, parts in keys.modules.items() if "lora_A" in parts and "lora_magnitude_vector" not in parts
        ]
        if plain:
            yield Problem("missing_keys", "error", f"use_dora, and no magnitudes: {some(plain)}")


def _unmatched(keys: Keys, config: AdapterConfig) -> str:
    """What is wrong with targets that are written as one regular expression, or ""."""
    written, names = config.word("target_modules"), [name for name in keys.modules if name not in keys.stacked]
    if not written or not names or config.words("target_modules") or written in NO_PATTERNS:
        return ""
    places = first_matches([written], names, whole=True)
    if places is None:
        return f"target_modules is no regular expression, or takes too long to match ({written[:80]})"
    if LAYOUTS.get(config.peft_type) and all(at is None for at in places):
        return f"target_modules matches no module that the file has ({written[:80]})"
    return ""


def _lacking(needed: tuple[tuple[tuple[str, ...], ...], ...], parts: Mapping[str, Tensor]) -> list[str]:
    """What is missing for one alternative of each group: of the one that lacks least."""
    lacking: list[str] = []
    for group in needed:
        ways = [[part for part in way if part not in parts] for way in group]
        lacking += sorted(ways, key=lambda way: len(way))[0]
    return lacking


def _named(target: str, modules: Iterable[str]) -> bool:
    return any(module == target or module.endswith(f".{target}") for module in modules)


def _of_prompt(keys: Keys, config: AdapterConfig) -> list[str]:
    tokens = keys.modules.get("", {}).get("prompt_embeddings")
    count = config.whole("num_virtual_tokens")
    if tokens is None or count is None or len(tokens.shape) != 2:
        return []
    able = {count, count * (config.whole("num_transformer_submodules") or 1)}
    return [] if tokens.shape[0] in able else [f"{tokens.shape[0]} virtual tokens, where the config says {count}"]


def of_values(modules: Sequence[Module], saved: Mapping[str, bool], unread: Sequence[str]) -> Iterator[Problem]:
    """What the numbers tell. ``saved``: whether each whole tensor is finite. ``unread``: what was not measured."""
    broken = [module.name or "its virtual tokens" for module in modules if not module.finite]
    broken += [name for name, finite in saved.items() if not finite]
    if broken:
        yield Problem("not_finite", "error", f"NaN or infinity in {some(broken)}")
    idle = [module for module in modules if module.neutral]
    if idle:
        parts = ", ".join(sorted({module.neutral for module in idle}))
        listed = some([module.name for module in idle])
        if len(idle) < len(modules):
            said = f"{len(idle):,} of {len(modules):,} modules change nothing: {listed}"
        elif saved:
            said = (
                f"only the modules that it brings whole can change anything: {parts} of every other is what it began as"
            )
        else:
            said = f"never trained: {parts} of every module is what it began as, and changes nothing"
        yield Problem("untrained", "warning", said)
    large = [module.name for module in modules if (module.rank or 0) > MOST_RANK]
    if large:
        yield Problem("not_measured", "note", f"updates of a rank above {MOST_RANK:,} are not measured: {some(large)}")
    if over := [module.name for module in modules if (module.norm or 0) > LARGEST]:
        yield Problem("too_large", "error", f"updates larger than any float32 in {some(over)}")
    if unread:
        yield Problem("not_measured", "note", f"not measured: {some(unread)}")


def of_base(keys: Keys, base: Base) -> Iterator[Problem]:
    """What the base tells: embeddings that it ties to its head, and another vocabulary."""
    ends = EMBEDDINGS | HEADS
    adapted = [name for name in keys.modules if name.rpartition(".")[2] in ends]
    whole = [name for name in keys.saved if name.removesuffix(".weight").rpartition(".")[2] in ends]
    if base.tied and adapted:
        yield Problem(
            "tied",
            "warning",
            f"adapts {some(adapted)}, whose weight this base shares between embedding and head: "
            "merged by peft, both change; merged by peftctl, they come apart",
        )
    elif base.tied and whole:
        yield Problem("tied", "warning", f"brings {some(whole)}, which this base shares between embedding and head")
    rows = {name: tensor.shape[0] for name, tensor in keys.saved.items() if name in whole and tensor.shape}
    for name in adapted:
        parts = keys.modules[name]
        tensor, side = (parts.get("lora_embedding_A"), 1) if "lora_embedding_A" in parts else (parts.get("lora_B"), 0)
        if tensor is not None and len(tensor.shape) == 2:
            rows[name] = tensor.shape[side]
    others = {name: count for name, count in rows.items() if base.vocabulary not in (None, count)}
    if others:
        name, count = next(iter(others.items()))
        yield Problem(
            "vocabulary",
            "error",
            f"{name} has {count:,} rows, and this base {base.vocabulary:,}: its vocabulary was resized",
        )


# What is wrong, in a few words, for each kind of error that keeps an adapter from being used.
BROKEN = {
    "field": "its config holds what it cannot",
    "unknown_keys": "it has tensors that its config does not explain",
    "missing_keys": "parts of it are missing",
    "targets": "its targets cannot be matched",
    "shapes": "its shapes contradict each other",
    "not_finite": "it holds NaN or infinity",
    "too_large": "its updates are larger than any float32",
    "pickle": "its weights are in a pickle, which is not opened",
    "vocabulary": "it is for another vocabulary",
}


def broken(problems: Iterable[Problem]) -> str:
    """Why the adapter cannot be used, in words; "" where it can."""
    kinds = dict.fromkeys(problem.kind for problem in problems if problem.level == "error")
    return " and ".join(BROKEN[kind] for kind in kinds)
