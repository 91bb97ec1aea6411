"""Whether an adapter fits a base model: each of its modules is there, with a weight of the shape it is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError
from peftctl.inspection import bounded
from peftctl.inspection.adapter_config import AdapterConfig
from peftctl.inspection.bounded import Tensor
from peftctl.inspection.keys import EMBEDDINGS, HEADS, Keys, some
from peftctl.inspection.layouts import LAYOUTS, shapes, sizes
from peftctl.inspection.patterns import first_matches

# Quantised weights are packed, and have other shapes than the layer.
PLAIN = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Base:
    """A base model's folder: its config, and its tensors by name (None where they are not in safetensors)."""

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor] | None

    def field(self, *names: str) -> Any:
        """A field of the config, or of the text model's within it; the first of ``names`` that is there."""
        text = self.config.get("text_config")
        for part in (self.config, text if isinstance(text, Mapping) else {}):
            for name in names:
                if part.get(name) is not None:
                    return part[name]
        return None

    def size(self, *names: str) -> int | None:
        value = self.field(*names)
        return value if type(value) is int else None

    @property
    def tied(self) -> bool | None:
        """Whether the head's weight is the input embedding's; None where that is not known."""
        said = self.field("tie_word_embeddings")
        if isinstance(said, bool):
            return said
        # A config leaves out what is its class's default; then the weights tell.
        return None if self.tensors is None else not any(self.of_last(HEADS))

    def of_last(self, last: frozenset[str]) -> Iterator[Tensor]:
        """The weights of modules with one of these last names."""
        for name, tensor in (self.tensors or {}).items():
            if name.endswith(".weight") and name.split(".")[-2] in last:
                yield tensor

    @property
    def vocabulary(self) -> int | None:
        """Rows of the input embedding."""
        found = next(self.of_last(EMBEDDINGS), None)
        return found.shape[0] if found and found.shape else self.size("vocab_size")


@dataclass(frozen=True)
class Fit:
    """Whether an adapter fits: None where it cannot be told. ``misfits``: what does not, or why it cannot be told;
    ``unchecked``: modules whose weights are packed, or those of experts that may be one tensor in the model and many in
    its files, so that only their names could be looked up.
    """

    base: str
    fits: bool | None
    misfits: tuple[str, ...]
    unchecked: int


def read_base(folder: Path) -> Base:
    """The model in ``folder``, or beside the config.json that it names. Raises UsageError where there is none."""
    if folder.name == "config.json" and bounded.is_file(folder):
        folder = folder.parent
    if folder.suffix.lower() == ".gguf" and bounded.is_file(folder):
        raise UsageError(
            f"{folder} is a GGUF file, whose tensors have other names than an adapter's modules; "
            "allowed: the model's folder",
            "a run on the file converts it to a folder, which the adapter names (base_model_name_or_path)",
        )
    if bounded.is_file(folder):
        raise UsageError(f"{folder} is a file, where the folder of a base model was expected")
    if "config.json" not in bounded.names(folder):
        raise UsageError(f"{folder} holds no config.json, so it is no base model")
    files = bounded.weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= bounded.header(file)
    return Base(folder, bounded.json_object(folder / "config.json"), tensors if files else None)


def fit(keys: Keys, config: AdapterConfig, base: Base) -> Fit:
    """Every module of the adapter, and every module saved whole, beside the base's."""
    layout = LAYOUTS.get(config.peft_type)
    if layout and layout.prompt:
        misfits = _prompt(keys, config, base)
        return Fit(str(base.folder), not misfits, tuple(misfits), 0)
    if base.tensors is None:
        return Fit(str(base.folder), None, ("its weights are not in safetensors files",), 0)
    places, found = _Places(base.tensors), _Found()
    for module, parts in keys.modules.items():
        if module in keys.stacked:
            found.unchecked += 1
            found.unknown += [] if places.alike(module) else [module]
        elif module:  # what belongs to no module belongs to all of them
            _compare(module, shapes(parts), config, base, places, found)
    misfits = [*found.misfits, *_saved(keys, places, base)]
    if found.missing:
        misfits.insert(0, f"{len(found.missing):,} modules are not there: {some(found.missing)}")
    if left := [name for name in _wanted(config, base.tensors) if name not in found.taken]:
        misfits.append(f"the config's targets name {len(left):,} layers that the adapter lacks: {some(left)}")
    if found.unknown and not misfits:
        why = f"there is nothing to compare {some(found.unknown)} with"
        return Fit(str(base.folder), None, (why,), found.unchecked)
    return Fit(str(base.folder), not misfits, tuple(misfits), found.unchecked)


@dataclass
class _Found:
    """What became of the modules; ``taken``: the base's weights that they are for."""

    misfits: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unchecked: int = 0
    taken: set[str] = field(default_factory=set)


def _compare(
    module: str,
    of: Mapping[str, tuple[int, ...]],
    config: AdapterConfig,
    base: Base,
    places: _Places,
    into: _Found,
) -> None:
    """Hold one module of the adapter against the base's."""
    found = places.weights(module) or (places.weights_of_head(base) if _last(module) in HEADS else [])
    into.taken |= {tensor.name for tensor in found}
    wanted = _shape(config, of)
    if not found and not places.packed(module):
        into.missing.append(module)
    elif not found or wanted is None or any(tensor.dtype not in PLAIN for tensor in found):
        into.unchecked += 1
    elif not any(_suits(tensor.shape, wanted, transposed=config.flag("fan_in_fan_out")) for tensor in found):
        into.misfits.append(f"{module} is for {_said(wanted)}, and is {list(found[0].shape)} there")


def _last(module: str) -> str:
    return module.rpartition(".")[2]


def _said(wanted: tuple[int | None, int | None]) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in wanted)}]"


class _Places:
    """A base's weights by every end of their names: a model's own names may begin otherwise than its files' do."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors
        self._ends: dict[str, list[str]] = {}
        self._within: set[tuple[str, str]] = set()  # the number of a layer, and the last name of a module in it
        for module in dict.fromkeys(above for name in tensors for above in _above(name)):
            number = next((piece for piece in module.split(".") if piece.isdecimal()), "")
            self._within.add((number, _last(module)))
            for end in _ends(module):
                self._ends.setdefault(end, []).append(module)

    def alike(self, parameter: str) -> bool:
        """Whether the layer of a parameter has a module called like the one that it is in. What stands between differs
        between a model and its files.
        """
        pieces = parameter.replace(".base_layer", "").split(".")
        number = next((piece for piece in pieces if piece.isdecimal()), "")
        holders = [piece for piece in pieces if "expert" in piece] or pieces[-2:-1]
        return any((number, piece) in self._within for piece in holders)

    def modules(self, module: str) -> list[str]:
        """The base's modules that may be meant: that very name, or those with the longest end in common."""
        module = module.replace(".base_layer", "")  # where two adapters are on one module
        for end in _ends(module):
            if found := self._ends.get(end):
                return [module] if module in found else found
        return []

    def weights(self, module: str) -> list[Tensor]:
        return [self._tensors[name] for each in self.modules(module) if (name := f"{each}.weight") in self._tensors]

    def weights_of_head(self, base: Base) -> list[Tensor]:
        """What a head's weight is, where the model ties it to its embedding."""
        return list(base.of_last(EMBEDDINGS)) if base.tied else []

    def packed(self, module: str) -> bool:
        """Whether the module is there without a weight so called, as quantised ones and experts are."""
        return bool(self.modules(module))


def _above(name: str) -> list[str]:
    """Every module that a parameter is in, the innermost first."""
    pieces = name.split(".")
    return [".".join(pieces[:end]) for end in range(len(pieces) - 1, 0, -1)]


def _ends(module: str) -> list[str]:
    """The name, and what is left of it without its first pieces, as long as the layer's number is in it."""
    pieces = module.split(".")
    number = next((at for at, piece in enumerate(pieces) if piece.isdecimal()), len(pieces))
    return [".".join(pieces[at:]) for at in range(max(1, number))]


def _shape(config: AdapterConfig, of: Mapping[str, tuple[int, ...]]) -> tuple[int | None, int | None] | None:
    """(outputs, inputs) of the layer that these parts are for, as far as they tell; None where they tell nothing."""
    layout = LAYOUTS.get(config.peft_type)
    if layout is None:
        return None
    if "lora_embedding_A" in of:  # an embedding's weight is [vocabulary, width]: the other way round
        down, up = of["lora_embedding_A"], of.get("lora_embedding_B", ())
        return (down[1], up[0]) if len(down) == len(up) == 2 else None
    letters, fault = sizes(layout, of)
    sides = []
    for product in layout.weight:
        known = [letters.get(letter) for letter in product]
        sides.append(None if None in known else _product(known))
    return None if fault or sides == [None, None] else (sides[0], sides[1])


def _product(sizes: list[int | None]) -> int:
    total = 1
    for size in sizes:
        total *= size or 0
    return total


def _suits(shape: tuple[int, ...], wanted: tuple[int | None, int | None], *, transposed: bool) -> bool:
    if len(shape) < 2:
        return False
    found = (shape[1], shape[0]) if transposed else (shape[0], shape[1])
    return all(want is None or want == size for want, size in zip(wanted, found, strict=True))


def _saved(keys: Keys, places: _Places, base: Base) -> list[str]:
    """What is wrong with the parameters of the base's own that the adapter brings."""
    misfits = []
    for name, tensor in keys.saved.items():
        module = name.rpartition(".")[0].removesuffix(".token_adapter")
        found = places.weights(module) or (places.weights_of_head(base) if _last(module) in HEADS else [])
        if not found or not name.endswith(".weight"):
            continue  # a head is often new; biases and token rows have shapes of their own
        if not any(each.shape == tensor.shape or each.dtype not in PLAIN for each in found):
            misfits.append(f"{name} is {list(tensor.shape)}, and {list(found[0].shape)} there")
    return misfits


def _prompt(keys: Keys, config: AdapterConfig, base: Base) -> list[str]:
    """What is wrong with virtual tokens: their width must be the hidden size, or that of all keys and values."""
    width, layers = (
        base.size("hidden_size", "n_embd", "d_model"),
        base.size("num_hidden_layers", "n_layer", "num_layers"),
    )
    heads = base.size("num_attention_heads", "n_head", "num_heads")
    parts = keys.modules.get("", {})
    shape = next((tensor.shape for tensor in parts.values()), ())
    if len(shape) != 2 or not width:
        return []
    allowed = {width}
    if layers and heads and LAYOUTS[config.peft_type].of_keys:
        each = base.size("head_dim") or width // heads
        allowed = {2 * layers * each * (base.size("num_key_value_heads") or heads)}
    if shape[1] in allowed:
        return []
    return [f"its virtual tokens are {shape[1]:,} wide, where this base needs {min(allowed):,}"]


def _wanted(config: AdapterConfig, tensors: Mapping[str, Tensor]) -> list[str]:
    """The base's weights that the config's targets name; none where what they name depends on more than names."""
    others = ("exclude_modules", "layers_to_transform", "layers_pattern", "layer_replication", "target_parameters")
    written = config.fields.get("target_modules")
    if any(config.fields.get(name) for name in others) or written == "all-linear":
        return []
    patterns = [written] if isinstance(written, str) else list(config.words("target_modules"))
    # Experts may be one tensor in the model and many in its files.
    able = [name for name, each in tensors.items() if name.endswith(".weight") and len(each.shape) == 2]
    able = [name for name in able if ".experts." not in name and not _kept(name, config)]
    modules = [name.removesuffix(".weight") for name in able]
    if isinstance(written, str):
        matched = first_matches(patterns, modules, whole=True) or []
    else:
        ends = set(patterns)
        matched = [0 if _ends_with(module, ends) else None for module in modules]
    return [name for name, at in zip(able, matched, strict=False) if at is not None]


def _kept(name: str, config: AdapterConfig) -> bool:
    return any(f".{saved}." in f".{name}" for saved in config.words("modules_to_save"))


def _ends_with(module: str, ends: set[str]) -> bool:
    pieces = module.split(".")
    return any(".".join(pieces[at:]) in ends for at in range(len(pieces)))
