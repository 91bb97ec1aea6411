"""The base model's parameters as they are to be merged into: as they are stored, or as training saw them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftctl.merge.layout import Layout
from peftctl.merge.weights import FLOATS, Stored, Weights, blocks, byte_size


@dataclass(frozen=True)
class Values:
    """``asked``: the dtype that is asked for, by torch's name, None for each tensor's own. ``wide``: parameters that
    stay in the dtype they are stored in. ``rounded``: those that training saw quantised, which ``as_trained`` gives.
    ``given``: those that an adapter brings whole, each with the file that it is in and its key there.
    """

    weights: Weights
    layout: Layout
    asked: str | None = None
    wide: Collection[str] = ()
    rounded: Collection[str] = ()
    as_trained: Callable[[str, Any], Any] | None = None
    given: Mapping[str, tuple[Path, str]] = field(default_factory=dict)

    def disk(self, name: str) -> str | None:
        """The tensor of the base that the parameter ``name`` is; None for one that is new."""
        return self.layout.disk.get(name) or self.layout.disk.get(self.layout.tied.get(name, ""))

    def shape(self, name: str) -> tuple[int, ...]:
        return self._found(name).shape

    def out_dtype(self, name: str) -> str:
        """The dtype in which the parameter is written."""
        disk = self.disk(name)
        if disk is None:
            return self.asked or self.weights.usual()
        stored = self.weights.stored[disk].dtype
        return self.asked if self.asked and stored in FLOATS and name not in self.wide else stored

    def work_dtype(self, name: str) -> Any:
        """Torch's dtype in which it is merged: the wider of how it is stored and how it is written."""
        import torch

        out, disk = getattr(torch, self.out_dtype(name)), self.disk(name)
        stored = self.weights.stored[disk].dtype if disk else ""
        return torch.promote_types(out, getattr(torch, stored)) if stored in FLOATS else out

    def as_it_stands(self, name: str) -> bool:
        """Whether the parameter's bytes are written as the base has them."""
        disk = self.disk(name)
        if disk is None or name in self.rounded or self._given(name):
            return False
        return self.out_dtype(name) == self.weights.stored[disk].dtype

    def whole(self, name: str) -> Any:
        """The parameter, in ``work_dtype``."""
        value = self._read(name)
        if name in self.rounded:
            assert self.as_trained is not None
            value = self.as_trained(name, value)
        return value.to(self.work_dtype(name)) if value.dtype.is_floating_point else value

    def rows(self, name: str, which: slice) -> Any:
        """Some rows of a parameter that is not among the ``rounded``, in ``work_dtype``."""
        return self._read(name, which).to(self.work_dtype(name))

    def pieces(self, name: str) -> Iterator[Any]:
        """The parameter in ``work_dtype``, in pieces of whole rows where it need not be whole."""
        shape = self.shape(name)
        if name in self.rounded or not shape:
            yield self.whole(name)
            return
        for cut in blocks(shape[0], byte_size("float32", shape[1:])):
            yield self.rows(name, cut)

    def known(self, name: str) -> bool:
        """Whether there is a value."""
        return self.disk(name) is not None or self._given(name) is not None

    def _read(self, name: str, rows: slice | None = None) -> Any:
        if (held := self._given(name)) is not None:
            with Weights([held[0]]) as brought:
                return brought.read(held[1], rows)
        disk = self.disk(name)
        assert disk is not None, f"{name} is not in the base model"
        return self.weights.read(disk, rows)

    def _found(self, name: str) -> Stored:
        if (held := self._given(name)) is not None:
            with Weights([held[0]]) as brought:
                return brought.stored[held[1]]
        disk = self.disk(name)
        assert disk is not None, f"{name} is not in the base model"
        return self.weights.stored[disk]

    def _given(self, name: str) -> tuple[Path, str] | None:
        return self.given.get(name) or self.given.get(self.layout.tied.get(name, ""))
