"""transformers imported without what a model without weights never uses, in less than half the time.

Of what ``import transformers.modeling_utils`` brings in, most is torch's compiler, its distributed tensors, its rules
for tracing, and scipy for the losses of object detection. In a process that only asks for shapes they are left out:
packages that transformers treats as optional look as if they were not installed, and torch's own modules are stood in
for by empty ones, whose every name is a class that gives back what it is called with. So this is for a process of
its own (``child``), and what it cannot build is built again by one that imports everything.
"""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# scipy and sklearn: for losses and for speculative decoding. The others: for loading and for quantised weights.
OPTIONAL = ("scipy", "sklearn", "accelerate", "peft", "bitsandbytes")
# The rules by which rarer operations work on meta tensors. Most models ask for none, and Llama 3 for one, ``where``.
RULES = "torch._meta_registrations"
# The compiler, and what is for tracing.
STOOD_IN = ("torch._dynamo", "torch.export", RULES)
# It reads every file of every model, half a second's worth, to know all names that ``transformers`` has.
LISTING = "transformers.utils.import_utils"


class _Nothing:
    """A decorator of a module that was left out: it gives back what it is put on."""

    def __new__(cls, given: Any = None, *_: Any, **__: Any) -> Any:
        return given if callable(given) else _given


def _given(what: Any) -> Any:
    return what


class _Empty(types.ModuleType):
    __path__: list[str] = []  # noqa: RUF012 - a package's own name for where its modules are: nowhere

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (_Nothing,), {})
        setattr(self, name, made)
        return made


class _StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self) -> None:
        self.names = list(STOOD_IN)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if any(fullname == name or fullname.startswith(f"{name}.") for name in self.names):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return _short_listing(path) if fullname == LISTING else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing: the module stays empty."""


def _short_listing(path: Sequence[str] | None) -> Any:
    """The module that lists names, made to list at first only the auto classes, and all models when another is asked
    for."""
    spec: Any = importlib.machinery.PathFinder.find_spec(LISTING, path)
    run = spec.loader.exec_module

    def run_and_shorten(module: Any) -> None:
        run(module)
        models, listed = Path(module.__file__).parents[1] / "models", module.create_import_structure_from_path
        known = module._LazyModule.__getattr__

        def of(path: str | Path) -> Any:
            folder = Path(path).parent if Path(path).is_file() else Path(path)
            return {"auto": listed(folder / "auto")} if folder == models else listed(folder)

        def found(self: Any, name: str) -> Any:
            try:
                return known(self, name)
            except AttributeError:
                # A name in small letters is a module, not yet imported.
                is_class = self.__name__ == "transformers" and name[:1].isupper()
                home = _home(name, listed(models)) if is_class else None
                if home is None:
                    raise
                return getattr(importlib.import_module(f"transformers.models.{home}"), name)

        module.create_import_structure_from_path = of
        module._LazyModule.__getattr__ = found

    spec.loader.exec_module = run_and_shorten
    return spec


def _home(name: str, listing: Mapping[str, Any]) -> str | None:
    """The module below ``transformers.models`` that has ``name``, by the listing of all of them."""
    for folder, by_needs in listing.items():
        for modules in by_needs.values():
            for module, names in modules.items() if isinstance(modules, dict) else ():
                if name in names:
                    return f"{folder}.{module}"
    return None


_stand_ins = _StandIns()
_rules: list[Any] = []  # those that stand in for torch's, for as long as they are held here


def import_lean() -> None:
    """Import torch so, and from now on transformers, for the rest of this process."""
    gc.disable()  # nothing of an import is garbage, and looking for it takes a tenth of the time
    for name in OPTIONAL:  # None is the import system's own word for a module that is not there
        sys.modules[name] = None  # type: ignore[assignment]
    sys.meta_path.insert(0, _stand_ins)
    import torch
    from torch import library

    torch.distributed.is_available = lambda: False
    torch.compiler.disable = torch.compiler.allow_in_graph = torch.compiler.assume_constant_result = _Nothing
    _rules.append(library.Library("aten", "IMPL", "Meta"))
    _rules[0].impl("where.self", _where)


def _where(condition: Any, one: Any, other: Any) -> Any:
    """A meta tensor of the shape and dtype of ``torch.where``; values it has none."""
    return condition * (one + other)


def add_rules() -> bool:
    """Import the rules after all, where they were left out; whether they were."""
    if not _rules:
        return False
    _rules.pop()._destroy()
    _stand_ins.names.remove(RULES)
    del sys.modules[RULES]
    importlib.import_module(RULES)
    return True
