"""The merge itself, tensor by tensor: fill a module from disk, let PEFT merge it, write it, let go of it.

A plain LoRA update is added by blocks of rows, so that not even one weight is ever whole in memory; the product of
such blocks is bit-equal to PEFT's, which the tests hold. As many blocks are read, computed and written at once as
torch has threads.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from peftctl.errors import VerificationError
from peftctl.merge import blank, pages
from peftctl.merge.shards import Shards, Wanted, raw
from peftctl.merge.units import Unit, merged
from peftctl.merge.values import Values
from peftctl.merge.weights import Stored, blocks

AHEAD = 2  # blocks that wait for each thread


@dataclass(frozen=True)
class Plan:
    """What is to be written: ``wanted`` by its name on disk, in order, each from a parameter of the model
    (``from_parameter``) or, where that is "", as it stands in the base. ``units`` by each of their parameters;
    ``ready``: other parameters that are in memory already.
    """

    wanted: Mapping[str, Wanted]
    from_parameter: Mapping[str, str]
    units: Mapping[str, Unit]
    ready: Mapping[str, Any] = field(default_factory=dict)


def write(plan: Plan, values: Values, folder: Path, most: int) -> None:
    """Fill ``folder`` with the merged weights in files of up to ``most`` bytes.

    Raises VerificationError naming a tensor with numbers that are not finite.
    """
    names = {parameter: name for name, parameter in plan.from_parameter.items() if parameter}
    with Shards(folder, plan.wanted, most) as shards, _Workers(shards) as workers:
        begun: set[str] = set()
        for name in plan.wanted:
            if name in begun:
                continue
            parameter = plan.from_parameter[name]
            if (unit := plan.units.get(parameter)) is not None:
                begun |= _unit(unit, values, names, workers)
            elif parameter in plan.ready:
                workers.tensor(name, iter([plan.ready[parameter]]))
            elif not parameter or values.as_it_stands(parameter):
                workers.file(name, values.weights.stored[(values.disk(parameter) if parameter else None) or name])
            else:
                workers.tensor(name, values.pieces(parameter))
        workers.finish()
        shards.finish()


def _unit(unit: Unit, values: Values, names: Mapping[str, str], workers: _Workers) -> set[str]:
    """Write the unit's parameters that have a name on disk, and return those names: a tied weight that stays so has
    none of its own."""
    for parameter, pieces in pieces_of(unit, values):
        if parameter in names:
            if callable(pieces):
                workers.blocks(names[parameter], pieces, _cuts(unit))
            else:
                workers.tensor(names[parameter], iter([pieces]))
    return {names[parameter] for parameter in unit.parameters if parameter in names}


def pieces_of(unit: Unit, values: Values) -> Iterator[tuple[str, Any]]:
    """The unit's parameters by name, merged: a tensor, or a function that makes some rows of one."""
    weight = f"{unit.name}.weight"
    if unit.rows is not None and weight not in values.rounded:
        yield weight, _rows(unit, values)
        yield from ((name, parameter.data) for name, parameter in _own(unit).items() if name != weight)
        return
    fill(unit, values)
    yield from merged(unit).items()
    for parameter in _own(unit).values():
        if parameter.dim() > 1:
            blank.clear(parameter)
    for parameter in unit.module.parameters():
        pages.let_go(parameter)


def merged_pieces(unit: Unit, values: Values) -> Iterator[tuple[str, Any]]:
    """The unit's parameters by name, merged, in pieces of whole rows."""
    for name, pieces in pieces_of(unit, values):
        yield from ((name, pieces(cut)) for cut in _cuts(unit)) if callable(pieces) else iter([(name, pieces)])


def fill(unit: Unit, values: Values, dtype: Any = None) -> None:
    """Give the model's own module in ``unit`` its values, in ``dtype`` or the one that they are merged in."""
    for name, parameter in _own(unit).items():
        if name in unit.small:  # an adapter may have brought it
            parameter.data = unit.small[name].to(dtype, copy=True)
        elif values.known(name):  # a head that is new comes from the adapter
            value = values.whole(name)
            parameter.data = value if dtype is None else value.to(dtype)


def _rows(unit: Unit, values: Values) -> Callable[[slice], Any]:
    """W + scale * up down, by rows, in the order of PEFT's own operations."""
    import torch

    assert unit.rows is not None
    down, up, scale = unit.rows.down.detach(), unit.rows.up.detach(), unit.rows.scale
    name = f"{unit.name}.weight"
    exact = math.frexp(scale)[0] == 0.5  # a power of two, by which nothing is rounded

    def block(cut: slice) -> Any:
        weight = values.rows(name, cut)
        update = torch.mm(up[cut] * scale if exact else up[cut], down)
        if not exact:
            update.mul_(scale)
        # The sum in float32 and one rounding, which is how torch adds to a narrower weight, only slower.
        weight = update.add_(weight.to(update.dtype)).to(weight.dtype)
        if cut.stop == len(up):
            pages.let_go(down)
            pages.let_go(up)
        return weight

    return block


def _cuts(unit: Unit) -> list[slice]:
    assert unit.rows is not None
    return list(blocks(len(unit.rows.up), unit.rows.down.shape[1] * unit.rows.down.itemsize))


def _own(unit: Unit) -> dict[str, Any]:
    return {f"{unit.name}.{last}": parameter for last, parameter in unit.base().named_parameters()}


class _Workers:
    """Threads that make pieces of tensors and write them. What goes wrong there is raised here.

    Torch itself computes in one thread meanwhile: several that each wait for the other spend their time waiting.
    """

    def __init__(self, shards: Shards) -> None:
        import torch

        self._shards, self._count = shards, torch.get_num_threads()
        self._pool = ThreadPoolExecutor(self._count)
        self._room = threading.Semaphore(AHEAD * self._count)
        self._begun: list[Future[None]] = []

    def __enter__(self) -> _Workers:
        import torch

        torch.set_num_threads(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        import torch

        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._count)

    def tensor(self, name: str, pieces: Iterator[Any]) -> None:
        """Write a tensor, of any float dtype, in pieces of whole rows. They are the caller's again when this returns.
        Raises VerificationError where they are not finite."""
        first = 0
        for piece in pieces:
            first += self._write(name, piece, first)

    def blocks(self, name: str, make: Callable[[slice], Any], cuts: list[slice]) -> None:
        """Have a tensor made by blocks of rows and written."""
        wanted = self._shards.wanted[name]
        row_bytes = wanted.size // wanted.shape[0]

        def one(cut: slice) -> None:
            self._write(name, make(cut), cut.start * row_bytes)

        for cut in cuts:
            self._begin(partial(one, cut))

    def file(self, name: str, stored: Stored) -> None:
        """Have a tensor written as it is stored in another file."""
        self._begin(partial(self._shards.copy, name, stored))

    def finish(self) -> None:
        for each in self._begun:
            each.result()

    def _begin(self, task: Callable[[], Any]) -> None:
        self._begun = [each for each in self._begun if not each.done() or each.result() is not None]
        self._room.acquire()

        def run() -> None:
            try:
                task()
            finally:
                self._room.release()

        self._begun.append(self._pool.submit(run))

    def _write(self, name: str, value: Any, first: int) -> int:
        import torch

        value = value.detach().to("cpu", getattr(torch, self._shards.wanted[name].dtype))
        if value.is_floating_point() and value.numel():
            least, most = value.aminmax()
            if not math.isfinite(float(least)) or not math.isfinite(float(most)):
                raise VerificationError(f"merging gives numbers in {name} that are not finite; nothing was published")
        data = raw(value)
        self._shards.write(name, data, first)
        return len(data)
