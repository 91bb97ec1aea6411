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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# scipy and sklearn: for losses and for speculative decoding. The others: for loading and for quantised weights.
OPTIONAL = ("scipy", "sklearn", "accelerate", "peft", "bitsandbytes")
# The rules by which rarer operations work on meta tensors. Most models ask for none, and Llama 3 for one, ``where``.
RULES = "torch._meta_registrations"
# The compiler, and what is for tracing.
STOOD_IN = ("torch._dynamo", "torch.export", RULES)


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
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing: the module stays empty."""


_stand_ins = _StandIns()
_rules: list[Any] = []  # those that stand in for torch's, for as long as they are held here


def import_lean() -> None:
    """Import torch and transformers' model classes so, for the rest of this process."""
    gc.disable()  # nothing of an import is garbage, and looking for it takes a tenth of the time
    for name in OPTIONAL:  # None is the import system's own word for a module that is not there
        sys.modules[name] = None  # type: ignore[assignment]
    sys.meta_path.insert(0, _stand_ins)
    import torch

    torch.distributed.is_available = lambda: False
    torch.compiler.disable = torch.compiler.allow_in_graph = torch.compiler.assume_constant_result = _Nothing
    _rules.append(torch.library.Library("aten", "IMPL", "Meta"))
    _rules[0].impl("where.self", _where)
    import transformers
    from transformers.utils import import_utils

    # It reads the folder of its models twice, a quarter of a second each, under two spellings of one path.
    read = import_utils.create_import_structure_from_path
    import_utils.create_import_structure_from_path = lambda path: read(_folder(path))
    assert transformers.__version__


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


def _folder(path: str | Path) -> Path:
    return Path(path).parent if Path(path).is_file() else Path(path)
