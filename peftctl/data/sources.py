"""A recipe's sources as examples, each with the place it came from, and every row accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from peftctl.atomic import sha256
from peftctl.data import files, hub, readers
from peftctl.data.order import order
from peftctl.errors import DataError, Place, UsageError
from peftctl.example import Conversation, Example, RowFault
from peftctl.formats import FORMATS, Format
from peftctl.formats.contract import WRONG_COLUMNS
from peftctl.recipe import filters
from peftctl.recipe.origin import origin
from peftctl.recipe.schema import DataSettings, Recipe, RowSettings, Source
from peftctl.tasks import TASKS, Task, task_of

SHOWN_FAULTS = 10
# The "epoch" whose order says which rows are held out: no training epoch is numbered so.
HELD_OUT = 2**32 - 1

Note = Callable[[str], None]


@dataclass(frozen=True)
class Sourced:
    """An example, the file and line (or row) of its row, and the number of its source in the recipe's list."""

    place: Place
    example: Example
    source: int = 0


@dataclass
class Tally:
    """What became of the rows that were read: those the filter left out, and the bad ones by reason.

    ``most_bad`` is the share of bad rows that may be left out; with None there must be none at all.
    """

    most_bad: float | None = None
    read: int = 0
    filtered: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    shown: list[str] = field(default_factory=list)
    hint: str = ""

    def fault(self, place: Place, fault: RowFault) -> None:
        """Count a bad row; the first few are kept to be shown."""
        self.bad[fault.kind] += 1
        if len(self.shown) < SHOWN_FAULTS:
            self.shown.append(f"{place}: {fault}")

    def settle(self) -> None:
        """Raises DataError where there are bad rows, or more of them than may be left out."""
        count = self.bad.total()
        if self.most_bad is None:
            if count:
                raise DataError("\n".join(self.shown) + self._more(count), self.hint)
        elif count and count / self.read > self.most_bad:  # not a product: 0.29 * 100 is less than 29
            reasons = ", ".join(f"{n:,} {reason}" for reason, n in self.bad.most_common())
            raise DataError(
                f"{count:,} of {self.read:,} rows are bad ({count / self.read:.1%}; {reasons}), more than "
                f"data.max_bad_fraction {self.most_bad:g} allows\n" + "\n".join(self.shown) + self._more(count),
                self.hint,
            )

    def _more(self, count: int) -> str:
        return f"\n... and {count - len(self.shown):,} more" if count > len(self.shown) else ""


def tally(data: DataSettings) -> Tally:
    """One for the recipe's way with bad rows."""
    return Tally(data.max_bad_fraction if data.on_bad_row == "drop" else None)


@dataclass(frozen=True)
class Side:
    """Examples of the training rows or of the held-out ones, and what became of the rows that are not among them.

    ``held_out``: how many of the rows went to the other side.
    """

    examples: Sequence[Sourced]
    tally: Tally
    held_out: int = 0


@dataclass(frozen=True)
class Where:
    """Where a source's rows are: a file's path, a URL, or a data set's split on the hub at one commit."""

    name: str
    hub: hub.HubRows | None = None
    remote: bool = False

    def rows(self, *, streaming: bool) -> Iterator[tuple[Place, readers.Row | RowFault]]:
        """Every row with its place, or what is wrong with it. Raises DataError and MachineError."""
        if self.hub is not None:
            for number, row in hub.rows(self.hub, streaming=streaming):
                yield Place(self.name, number), row
            return
        here = self.name if streaming or not self.remote else str(files.local(self.name))
        with files.open_binary(here) as file:
            for number, found in readers.read(self.name, file):
                yield Place(self.name, number), found


def locate(recipe: Recipe, source: RowSettings, note: Note = lambda _: None) -> Where:
    """Where the source's rows are. Raises UsageError where a setting is for another kind of source."""
    path = str(source.path)
    kind = origin(recipe, path)
    if kind == "hub":
        if source.sha256 is not None:
            raise UsageError(f"sha256: has no effect on {path}, a hub data set, which its revision pins")
        found = hub.find(path, source.config, source.hub_split, source.revision, note)
        return Where(f"{found.repo}@{found.revision[:7]}/{found.split}", found)
    for key in ("config", "hub_split", "revision"):
        if getattr(source, key) is not None:
            raise UsageError(f"{key}: has no effect on {path}, which is no hub data set")
    if kind == "url" and path.lower().startswith("file://") and not path[len("file://") :].startswith("/"):
        raise UsageError(f"{path}: a file:// URL has no folder to be relative to", "name the file by its path alone")
    return Where(path, remote=True) if kind == "url" else Where(str(recipe.path(path)))


def resolve(recipe: Recipe, note: Note = lambda _: None) -> Recipe:
    """Every source pinned to what it holds: a file to its SHA-256, a hub data set to its commit.

    Raises DataError where a file cannot be read, or is pinned to other contents already.
    """

    def found(source: RowSettings) -> Mapping[str, Any]:
        where = locate(recipe, source, note)
        if where.hub is not None:
            pins = {"config": where.hub.config, "hub_split": where.hub.split, "revision": where.hub.revision}
        elif where.remote and recipe.data.streaming:
            if source.sha256 is not None:
                raise UsageError(f"sha256: {where.name} is streamed, and read as it comes: nothing checks it first")
            note(f"{where.name} is streamed, so nothing pins what it holds")
            pins = {}
        else:
            pins = {"sha256": _pin(where, source)}
        return {**pins, "format": _format(where, source, task_of(recipe.task), streaming=recipe.data.streaming)}

    return recipe.with_sources("from the rows", found)


def _pin(where: Where, source: RowSettings) -> str:
    """The SHA-256 of the source's file. Raises DataError where it cannot be read, or is pinned to another."""
    here = files.local(where.name)
    with files.open_binary(str(here)):
        pass  # says what is wrong where it cannot be
    digest = sha256(here)
    if source.sha256 not in (None, digest):
        raise DataError(
            f"{where.name}: is not the file that the recipe pins (SHA-256 {digest[:12]}..., pinned "
            f"{str(source.sha256)[:12]}...)",
            "take the file it was then; where the recipe itself says sha256, leave that out to train on this one",
        )
    return digest


def _format(where: Where, source: RowSettings, task: Task, *, streaming: bool) -> str:
    """The name of the format that the source's first row is of. Raises DataError where none fits, or more than one."""
    if source.format != "auto":
        return source.format
    taken = filters.compiled(source.filter) if source.filter else None
    for place, row in where.rows(streaming=streaming):
        with suppress(RowFault):
            if not isinstance(row, RowFault) and (not taken or taken(row)):
                return choose_format("auto", frozenset(renamed(row, source.columns)), task, place).name
    return source.format


def examples(
    where: Where, source: RowSettings, task: Task, tally: Tally, *, streaming: bool = False
) -> Iterator[Sourced]:
    """The source's rows as examples, one at a time; bad ones are told to ``tally``.

    Raises DataError where the columns of the first row fit no format, or more than one.
    """
    taken = filters.compiled(source.filter) if source.filter else None
    fmt: Format | None = None
    left = source.limit
    for place, row in where.rows(streaming=streaming):
        if left == 0:
            return
        tally.read += 1
        try:
            if isinstance(row, RowFault):
                raise row
            if taken and not taken(row):
                tally.filtered += 1
                continue
            left = None if left is None else left - 1
            row = renamed(row, source.columns)
            fmt = fmt or choose_format(source.format, frozenset(row), task, place)
            yield Sourced(place, fmt.example(row))
        except RowFault as fault:
            if fmt and not isinstance(row, RowFault):
                tally.hint = tally.hint or f"rows of format {fmt.name} hold {fmt.columns}"
            tally.fault(place, fault)


def renamed(row: readers.Row, columns: Mapping[str, str] | None) -> readers.Row:
    """The row with columns under the names that the format has for them."""
    for name, found in (columns or {}).items():
        if found not in row:
            held = ", ".join(map(str, row)) or "none"
            raise RowFault(f"no column {found!r}, which columns.{name} names (columns: {held})", WRONG_COLUMNS)
    given = columns or {}
    kept = {name: value for name, value in row.items() if name not in given.values()} if given else row
    return {**kept, **{name: row[found] for name, found in given.items()}}


def read_examples(path: Path, format_name: str, limit: int | None, task: str) -> list[Sourced]:
    """The rows of one file as examples. Raises DataError naming up to ten faulty rows by file and line."""
    counted = Tally()
    source = Source(path=str(path), format=format_name, limit=limit)
    found = list(examples(Where(str(path)), source, TASKS[task], counted))
    counted.settle()
    if not found:
        raise DataError(f"{path}: no rows")
    return found


def read(recipe: Recipe, note: Note = lambda _: None) -> tuple[Side, Side | None]:
    """The recipe's training and held-out examples. Raises DataError; no tokenizer or model is needed."""
    task, data = task_of(recipe.task), recipe.data
    counted = tally(data)
    train: list[Sourced] = []
    nothing: list[DataError] = []
    for number, source in enumerate(data.train):
        before, bad, filtered = len(train), counted.bad.total(), counted.filtered
        where = locate(recipe, source, note)
        for sourced in examples(where, source, task, counted):
            train.append(Sourced(sourced.place, sourced.example, number))
        if len(train) == before and counted.bad.total() == bad:
            nothing.append(_nothing(where, counted.filtered - filtered))
    counted.settle()
    if nothing:
        raise nothing[0]
    held_out = data.eval
    if held_out is None:
        sides: tuple[Side, Side | None] = Side(train, counted), None
    elif held_out.path is not None:
        of_eval = tally(data)
        where = locate(recipe, held_out, note)
        found = list(examples(where, held_out, task, of_eval))
        of_eval.settle()
        if not found and not of_eval.bad:
            raise _nothing(where, of_eval.filtered)
        sides = Side(train, counted), Side(found, of_eval)
    else:
        sides = _split(recipe, train, counted)
    check_effects(data, [row.example for side in sides if side for row in side.examples])
    return sides


def held_out(recipe: Recipe, note: Note = lambda _: None) -> Sequence[Sourced]:
    """The recipe's held-out examples alone; [] where it holds out none. Raises DataError."""
    side = held_out_side(recipe, note)
    return side.examples if side else []


def held_out_side(recipe: Recipe, note: Note = lambda _: None) -> Side | None:
    """The same with what became of the other rows that were read for them. Of a stream they are its first rows."""
    wanted, data = recipe.data.eval, recipe.data
    if wanted is None:
        return None
    if not data.streaming and wanted.path is None:
        return read(recipe, note)[1]
    counted = tally(data)
    source: RowSettings = wanted if wanted.path is not None else data.train[0]
    where = locate(recipe, source, note)
    found = examples(where, source, task_of(recipe.task), counted, streaming=data.streaming)
    taken = list(islice(found, wanted.count))
    counted.settle()
    if not taken and not counted.bad:
        raise _nothing(where, counted.filtered)
    # Rows that were passed over to find a stream's first ones are counted with the stream.
    return Side(taken, counted if wanted.path is not None else Tally(counted.most_bad, read=len(taken)))


def _nothing(where: Where, filtered: int) -> DataError:
    """What to say of a source that gave nothing, where no bad row says why."""
    return DataError(f"{where.name}: no rows" + (f" (the filter left out all {filtered:,})" if filtered else ""))


def _split(recipe: Recipe, train: Sequence[Sourced], counted: Tally) -> tuple[Side, Side]:
    held_out = recipe.data.eval
    assert held_out is not None
    count = held_out.count or max(1, round((held_out.split or 0) * len(train)))
    if count >= len(train):
        raise DataError(
            f"data.eval: {count} rows are to be held out of {len(train)}, so none would be left to train on"
        )
    taken = set(order(recipe.train.seed, HELD_OUT, len(train))[:count].tolist())
    kept = [row for index, row in enumerate(train) if index not in taken]
    other = [row for index, row in enumerate(train) if index in taken]
    return Side(kept, counted, held_out=count), Side(other, Tally(counted.most_bad, read=count))


def check_effects(data: DataSettings, examples: Sequence[Example]) -> None:
    """Raises UsageError where a setting for conversations is given and there are none."""
    if any(isinstance(example, Conversation) for example in examples):
        return
    for key, written in (("learn", data.learn != "assistant"), ("template", data.template is not None)):
        if written:
            raise UsageError(f"data.{key}: has no effect on rows that are no conversations")


def choose_format(name: str, columns: frozenset[str], task: Task, place: Place) -> Format:
    """The format of that name, or with ``auto`` the only one that fits the columns of the first row."""
    if name != "auto":
        return FORMATS[name]
    able = [fmt for fmt in FORMATS.values() if set(fmt.makes) & set(task.accepts)]
    fitting = [fmt for fmt in able if fmt.matches(columns)]
    if len(fitting) == 1:
        return fitting[0]
    held = ", ".join(sorted(columns)) or "none"
    if fitting:
        names = ", ".join(fmt.name for fmt in fitting)
        raise DataError(f"{place}: the columns {held} fit more than one format: {names}", hint="name one as `format:`")
    raise DataError(
        f"{place}: the columns {held} fit no format for {task.name}",
        hint="; ".join(f"{fmt.name} reads {fmt.columns}" for fmt in able) + "; `columns:` can give them other names",
    )
