"""The merge itself, tensor by tensor: fill a module from disk, let PEFT merge it, write it, let go of it.

A plain LoRA update is added by blocks of rows, so that not even one weight is ever whole in memory; the product of
such blocks is bit-equal to PEFT's, which the tests hold. Reading, computing and writing overlap.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from peftctl.errors import VerificationError
from peftctl.merge import blank, pages
from peftctl.merge.shards import Shards, Wanted, raw
from peftctl.merge.units import Unit, merged
from peftctl.merge.values import Values
from peftctl.merge.weights import Stored, blocks

AHEAD = 2  # pieces read, and pieces to be written, that wait


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


def write(plan: Plan, values: Values, folder: Path, most: int, done: Callable[[int], None] = lambda _: None) -> None:
    """Fill ``folder`` with the merged weights in files of up to ``most`` bytes. ``done`` hears how many bytes of them
    are written. Raises VerificationError naming a tensor with numbers that are not finite."""
    names = {parameter: name for name, parameter in plan.from_parameter.items() if parameter}
    with Shards(folder, plan.wanted, most) as shards, _Writer(shards) as writer, ThreadPoolExecutor(1) as reader:
        written: set[str] = set()
        total = 0
        for name in plan.wanted:
            total += plan.wanted[name].size
            if name in written:
                continue
            parameter = plan.from_parameter[name]
            unit = plan.units.get(parameter)
            if unit is not None:
                for each, piece in _merged(unit, values, reader):
                    if each in names:  # a bias of a layer may be blank, and a tied weight written elsewhere
                        written.add(names[each])
                        writer.tensor(names[each], piece)
            elif parameter in plan.ready:
                writer.tensor(name, plan.ready[parameter])
            elif not parameter or values.as_it_stands(parameter):
                stored = values.weights.stored[(values.disk(parameter) if parameter else None) or name]
                writer.file(name, stored)
            else:
                writer.tensor(name, values.whole(parameter))
            done(total)
        writer.finish()
        shards.finish()


def merged_pieces(unit: Unit, values: Values) -> Iterator[tuple[str, Any]]:
    """The unit's parameters by name, merged, in pieces of whole rows."""
    with ThreadPoolExecutor(1) as reader:
        yield from _merged(unit, values, reader)


def _merged(unit: Unit, values: Values, reader: ThreadPoolExecutor) -> Iterator[tuple[str, Any]]:
    weight = f"{unit.name}.weight"
    if unit.rows is not None and weight not in values.rounded:
        yield from ((weight, block) for block in _by_rows(unit, values, reader))
        yield from ((name, parameter.data) for name, parameter in _own(unit).items() if name != weight)
        pages.let_go(unit.rows.down)
        pages.let_go(unit.rows.up)
        return
    fill(unit, values)
    yield from merged(unit).items()
    for parameter in _own(unit).values():
        if parameter.dim() > 1:
            blank.clear(parameter)
    for parameter in unit.module.parameters():
        pages.let_go(parameter)


def fill(unit: Unit, values: Values, dtype: Any = None) -> None:
    """Give the model's own module in ``unit`` its values, in ``dtype`` or the one that they are merged in."""
    for name, parameter in _own(unit).items():
        if name in unit.small:  # an adapter may have brought it
            parameter.data = unit.small[name].to(dtype, copy=True)
        elif values.known(name):  # a head that is new comes from the adapter
            value = values.whole(name)
            parameter.data = value if dtype is None else value.to(dtype)


def _by_rows(unit: Unit, values: Values, reader: ThreadPoolExecutor) -> Iterator[Any]:
    """W + scale * up down, by rows, in the order of PEFT's own operations."""
    import torch

    assert unit.rows is not None
    down, up, scale = unit.rows.down.detach(), unit.rows.up.detach(), unit.rows.scale
    if math.frexp(scale)[0] == 0.5:  # a power of two, by which nothing is rounded
        up, scale = up * scale, 1.0
    name = f"{unit.name}.weight"
    cuts = list(blocks(len(up), down.shape[1] * down.itemsize))
    room = down.new_empty(max(cut.stop - cut.start for cut in cuts), down.shape[1])  # the same for all: new costs time
    for cut, weight in zip(cuts, _ahead(reader, cuts, lambda cut: values.rows(name, cut)), strict=True):
        update = torch.mm(up[cut], down, out=room[: cut.stop - cut.start])
        if scale != 1:
            update.mul_(scale)
        # The sum in float32 and one rounding, which is how torch adds to a narrower weight, only slower.
        yield update.add_(weight.to(update.dtype)).to(weight.dtype)


def _ahead(reader: ThreadPoolExecutor, cuts: list[slice], read: Callable[[slice], Any]) -> Iterator[Any]:
    waiting = [reader.submit(read, cut) for cut in cuts[:AHEAD]]
    for at in range(len(cuts)):
        value = waiting.pop(0).result()
        if at + AHEAD < len(cuts):
            waiting.append(reader.submit(read, cuts[at + AHEAD]))
        yield value


def _own(unit: Unit) -> dict[str, Any]:
    return {f"{unit.name}.{last}": parameter for last, parameter in unit.base().named_parameters()}


class _Writer:
    """Writes in a thread of its own what it is given, in that order, and raises here what went wrong there."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._waiting: queue.Queue[tuple[str, memoryview | Stored] | None] = queue.Queue(AHEAD)
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> _Writer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def tensor(self, name: str, value: Any) -> None:
        """The next rows of a tensor, of any float dtype. Raises VerificationError where they are not finite."""
        import torch

        value = value.detach().to("cpu", getattr(torch, self._shards.wanted[name].dtype))
        if value.is_floating_point() and value.numel():
            least, most = value.aminmax()
            if not math.isfinite(float(least)) or not math.isfinite(float(most)):
                raise VerificationError(f"merging gives numbers in {name} that are not finite; nothing was published")
        self.bytes(name, raw(value))

    def bytes(self, name: str, data: memoryview | bytes) -> None:
        self._raise()
        self._waiting.put((name, memoryview(data)))

    def file(self, name: str, stored: Stored) -> None:
        """A tensor as it is stored in another file."""
        self._raise()
        self._waiting.put((name, stored))

    def finish(self) -> None:
        self._end()
        self._raise()

    def _end(self) -> None:
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (each := self._waiting.get()) is not None:
            if not self._failed:
                name, data = each
                try:
                    if isinstance(data, Stored):
                        self._shards.copy(name, data)
                    else:
                        self._shards.write(name, data)
                except BaseException as error:
                    self._failed.append(error)

    def _raise(self) -> None:
        if self._failed:
            raise self._failed[0]
