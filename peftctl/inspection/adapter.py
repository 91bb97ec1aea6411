"""An adapter folder as facts: what it is, what it is for, how large its updates are, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from math import sqrt
from pathlib import Path
from statistics import median
from typing import Any

from peftctl.errors import PeftctlError, UsageError
from peftctl.inspection import bounded, keys, problems
from peftctl.inspection.able import Able, exports, is_error, merges
from peftctl.inspection.adapter_config import AdapterConfig, read_config
from peftctl.inspection.bounded import Tensor
from peftctl.inspection.fit import Base, Fit, fit, read_base
from peftctl.inspection.keys import Keys
from peftctl.inspection.layouts import LAYOUTS, shapes, sizes
from peftctl.inspection.problems import Problem
from peftctl.inspection.published import Published, published, same_base
from peftctl.inspection.ranks import Ranks, ranks_of, scale
from peftctl.inspection.tensors import Reader, readable
from peftctl.inspection.threads import one_thread
from peftctl.inspection.update import Module, measure, measured
from peftctl.inspection.values import word
from peftctl.methods.generic_limits import EITHER
from peftctl.model.targets import summary

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
# Of larger adapters the rest is not measured: it would take minutes.
MEASURED_BYTES = 4_000_000_000
MEASURED_MODULES = 10_000
VARIANTS = ("use_rslora", "use_dora", "lora_bias", "use_qalora", "use_bdlora")


@dataclass(frozen=True)
class AdapterFacts:
    """``method`` is a recipe's word, None for one that has none. ``ranks``: how many modules have each rank.

    ``targets``: how often each name with its layer number left out; ``layers``: their numbers. ``saved``: parameters
    of the base's own that it brings, by name. ``fit`` is None where no base was given.

    ``alphas``: how many modules have each alpha. ``blocks``: the size or the number of the blocks, of a method that
    has blocks in the place of a rank. ``run``: the run directory that it is in, "" for none; ``quantization``: how the
    base was quantised in that run. ``exports`` is empty where it is in none.
    """

    path: str
    method: str | None
    peft_type: str
    peft_version: str | None
    task_type: str | None
    rank: int | None
    alpha: float | None
    ranks: Mapping[int, int]
    alphas: Mapping[float, int]
    blocks: str
    variants: tuple[str, ...]
    virtual_tokens: int | None
    targets: Mapping[str, int]
    layers: tuple[int, ...]
    size_bytes: int
    parameters: int
    dtypes: Mapping[str, int]
    base_name: str | None
    base_revision: str | None
    run: str
    quantization: Mapping[str, Any] | None
    fit: Fit | None
    modules: tuple[Module, ...]
    saved: Mapping[str, int]
    problems: tuple[Problem, ...]
    merges: Able
    exports: Mapping[str, Able]

    @property
    def wrong(self) -> bool:
        """Whether it does not do what it should, or does not fit the base that was given."""
        return is_error(self.problems) or (self.fit is not None and self.fit.fits is False)

    @property
    def update(self) -> dict[str, float] | None:
        """The norm of all measured updates together, and the median of their effective ranks."""
        measured = [(each.norm, each.effective_rank) for each in self.modules if each.norm is not None]
        if not measured:
            return None
        norm = sqrt(sum(norm**2 for norm, _ in measured))
        return {"norm": norm, "effective_rank": median(rank or 0.0 for _, rank in measured)}

    def as_dict(self) -> dict[str, Any]:
        """The facts as plain values, none of them NaN or infinite."""
        return {"kind": "adapter", **asdict(self), "update": self.update}

    def in_short(self) -> dict[str, Any]:
        """Without the modules."""
        return {key: value for key, value in self.as_dict().items() if key != "modules"}


def adapter_facts(path: Path, base: Path | None = None, known: Published | None = None) -> AdapterFacts:
    """The adapter in the folder ``path``; beside ``base``, a model's folder, where one is given. ``known``: what its
    run's manifest says, where that has been read.

    Raises UsageError where there is no adapter, where its files are damaged, or where no model is in ``base``.
    """
    config = read_config(path)
    known_of = known or published(path)
    beside = read_base(base) if base else _config_of(config)
    tensors, found = _tensors(path)
    by = keys.sort_keys(tensors, config)
    ranks = ranks_of(by.modules, config)
    modules, finite, unread = _measured(by, config, ranks)
    found += [*problems.of_config(config), *problems.of_keys(by, config, ranks)]
    found += problems.of_values(modules, finite, unread)
    found += problems.of_base(by, beside) if beside else []
    merged = merges(config, found, known_of)
    layout = LAYOUTS.get(config.peft_type)
    blocks = _blocks(config)
    return AdapterFacts(
        path=str(path),
        method=config.method,
        peft_type=config.peft_type,
        peft_version=config.word("peft_version"),
        task_type=config.word("task_type"),
        rank=None if blocks else config.whole(layout.rank if layout else "r"),
        alpha=config.number(layout.alpha if layout else "lora_alpha"),
        ranks=dict(Counter(module.rank for module in modules if module.rank is not None)),
        alphas=dict(Counter(ranks.alphas.values())),
        blocks=blocks,
        variants=tuple(name for name in VARIANTS if config.flag(name)),
        virtual_tokens=config.whole("num_virtual_tokens"),
        targets=summary(name for name in by.modules if name),
        layers=tuple(keys.layers(by.modules)),
        size_bytes=sum(bounded.size_of(path / name) for name in (WEIGHTS, PICKLED) if bounded.is_file(path / name)),
        parameters=sum(tensor.parameters for tensor in tensors.values()),
        dtypes=_dtypes(tensors),
        base_name=config.word("base_model_name_or_path"),
        base_revision=config.word("revision"),
        run=known_of.run if known_of else "",
        quantization=known_of.quantization if known_of else None,
        fit=_fit(by, config, beside, known_of) if base and beside else None,
        modules=tuple(modules),
        saved={name: tensor.parameters for name, tensor in by.saved.items()},
        problems=tuple(found),
        merges=merged,
        exports=exports(merged, known_of),
    )


def _fit(by: Keys, config: AdapterConfig, base: Base, known: Published | None) -> Fit:
    """Whether it fits ``base``: its shapes, and where its run says so, whether that is the model it was trained on."""
    found = fit(by, config, base)
    if found.fits is False or known is None or same_base(base.folder, known.base) is not False:
        return found
    name = word(known.base.get("name"))
    trained = "it is not the base that this was trained on" + (f", {name}" if name else "")
    return replace(found, fits=False, misfits=(f"its shapes fit, but {trained}" if found.fits else trained,))


def _blocks(config: AdapterConfig) -> str:
    """The size or the number of blocks, of a method whose config says one of them and 0 for the other."""
    size, number = (config.whole(name) for name in EITHER.get(config.method or "", ("", "")))
    return f"blocks of {size}" if size else f"{number} blocks" if number else ""


def _config_of(config: AdapterConfig) -> Base | None:
    """The base that the adapter's config names, where that is a folder here: its config, and not its weights."""
    name = config.word("base_model_name_or_path")
    folder = Path(name) if name else None
    if folder is None or not folder.is_absolute() or not bounded.is_file(folder / "config.json"):
        return None
    try:
        return Base(folder, bounded.json_object(folder / "config.json"), None)
    except PeftctlError:
        return None


def _tensors(path: Path) -> tuple[dict[str, Tensor], list[Problem]]:
    """The adapter's tensors, and what there is to say where they are in a file that is not opened."""
    if WEIGHTS in bounded.names(path):
        return bounded.header(path / WEIGHTS), []
    if PICKLED in bounded.pickles(path):
        said = f"its weights are in {PICKLED}, a pickle, which runs code when it is opened: it was not"
        return {}, [Problem("pickle", "error", f"{said}; save the adapter again as safetensors")]
    raise UsageError(f"{path} holds no {WEIGHTS} (found {keys.some(bounded.names(path), 6)})")


def _measured(by: Keys, config: AdapterConfig, known: Ranks) -> tuple[list[Module], dict[str, bool], list[str]]:
    """Every module; for each tensor saved whole, whether it is finite; and what was not measured."""
    layout = LAYOUTS.get(config.peft_type)
    reader, left = Reader(), MEASURED_BYTES
    modules: list[Module] = []
    finite: dict[str, bool] = {}
    unread: list[str] = []
    with one_thread():
        for name, parts in by.modules.items():
            left -= sum(tensor.size_bytes for tensor in parts.values())
            letters, fault = sizes(layout, shapes(parts)) if layout else ({}, "")
            if left < 0 or len(modules) >= MEASURED_MODULES or fault or not all(map(readable, parts.values())):
                unread.append(name)
                module = Module(name, sum(tensor.parameters for tensor in parts.values()))
            else:
                neutral = layout.neutral if layout else {}
                module = measure(reader, name, parts, neutral, scale(config, name, parts, known))
            rank = known.ranks.get(name) if name in by.stacked else letters.get("r")
            modules.append(replace(module, rank=rank))
        for name, tensor in by.saved.items():
            left -= tensor.size_bytes
            if left < 0 or not readable(tensor):
                unread.append(name)
            else:
                finite[name] = measured(reader, tensor).finite
    return modules, finite, unread


def _dtypes(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Parameters by dtype."""
    found: Counter[str] = Counter()
    for tensor in tensors.values():
        found[tensor.dtype] += tensor.parameters
    return dict(found)
