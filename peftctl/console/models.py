"""What ``peftctl inspect`` shows of a model: what to write as ``targets`` first, then why."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from peftctl.console import _Console, say, visible
from peftctl.inspection.facts import (
    COUNTED_BY_PEFT,
    SIZES,
    Architecture,
    Choice,
    Count,
    Group,
    Match,
    Matched,
    written,
)
from peftctl.inspection.model import ModelFacts
from peftctl.inspection.roles import EXPERTS, HEAD
from peftctl.sizes import size

MOST_NAMED = 4  # methods in a line of targets
WIDE = 160  # columns, where no terminal says how many there are


def show(facts: ModelFacts) -> None:
    """The facts on standard output."""
    _heading(facts)
    found = facts.architecture
    if found is None:
        say()
        _table(
            ["tensor", "shape", "how many", "dtype"],
            [[each.name, _by(each.shape), f"{each.layers:,}", each.dtype] for each in facts.tensors],
            right=(2,),
        )
    elif found.tree or found.match:
        if found.match:
            _match(found.match, found.experts_by)
        if found.tree:
            _tree(found)
    else:
        _targets(found)
        _groups(found.groups)
        _experts(found)
        _counts(found)
    for note in facts.notes:
        say(f"note: {visible(note)}")


def _heading(facts: ModelFacts) -> None:
    found = facts.architecture
    say(visible(facts.name) + (f" at {facts.commit}" if facts.commit else ""))
    if found:
        built = [found.class_name]
        built += [f"{found.layers} layers"] if found.layers else []
        built += [f"width {found.width:,}"] if found.width else []
        say(", ".join(built) + f"; {_tasks(found)}")
        kinds = ", ".join(f"{kind} {_share(count, found.parameters)}" for kind, count in found.kinds.items())
        say(f"{_short(found.parameters)} parameters: {kinds}")
        for shared in found.tied:
            say(f"one tensor, tied: {', '.join(shared)}")
    say(_disk(facts))
    for strange in found.strange if found else ():
        say(f"warning: weights and config differ: {visible(strange)}")


def _tasks(found: Architecture) -> str:
    if not found.tasks:
        return "peftctl has no task for it"
    (first, name), *others = found.tasks.items()
    built = "" if name == found.class_name else f" (built as {name})"
    return ", ".join([f"for {first}{built}", *(task for task, _ in others)])


def _disk(facts: ModelFacts) -> str:
    quantised = f", quantised: {visible(facts.quantization)}" if facts.quantization else ""
    if facts.unread:
        return f"weights: cannot be read: {visible(facts.unread)}"
    if facts.disk is None:
        dtype = facts.architecture.dtype if facts.architecture else ""
        return f"weights: none {'fetched' if facts.source == 'hub' else 'here'}" + (
            f" ({dtype} by the config{quantised})" if dtype else quantised
        )
    total = sum(facts.disk.by_dtype.values())
    kinds = ", ".join(
        dtype if len(facts.disk.by_dtype) == 1 else f"{dtype} {_share(count, total)}"
        for dtype, count in facts.disk.by_dtype.items()
    )
    files = f"{facts.disk.files} file" + ("s" if facts.disk.files != 1 else "")
    return f"weights: {size(facts.disk.size_bytes)} in {files}, {kinds}{quantised}"


def _targets(found: Architecture) -> None:
    """Lines that a recipe takes as they stand."""
    say()
    lines = [(f"targets: {written(choice.targets)}", _covers(choice, found.parameters)) for choice in found.choices]
    wide = max((len(line) for line, _ in lines if len(line) <= WIDE // 2), default=0)
    for line, covers in lines:
        _print(Text.assemble((line.ljust(wide), "bold"), ("  # " + covers, "dim")))


def _covers(choice: Choice, parameters: int) -> str:
    name = "" if choice.name == choice.targets[0] or choice.default_of else f"{choice.name}: "
    own = f"default of {_some(choice.default_of)}: " if choice.default_of else ""
    count = f"{choice.modules:,} layer{'s' if choice.modules != 1 else ''}"
    return f"{own or name}{count}, {_share(choice.weights, parameters)} of the base's parameters"


def _some(names: Sequence[str]) -> str:
    more = len(names) - MOST_NAMED
    return f"{', '.join(names[:MOST_NAMED])} and {more} others" if more > 1 else ", ".join(names)


def _groups(groups: Sequence[Group]) -> None:
    say()
    rows = []
    for group in groups:
        shape = f"{group.shape[0]:,} → {group.shape[1]:,}" if group.linear else _by(group.shape)
        role = f"{group.part} {group.role}".strip()
        count = "tied" if group.tied else _short(group.parameters)
        rows.append([role, group.name, shape, f"{group.layers:,}", group.type, count])
    _table(["does", "called", "inputs → outputs", "layers", "type", "parameters"], rows, right=(2, 3, 5))


def _experts(found: Architecture) -> None:
    names = dict.fromkeys(group.name for group in found.groups if group.role == EXPERTS and not group.linear)
    if names:
        ends = ", ".join(dict.fromkeys(".".join(name.split(".")[-2:]) for name in names))
        by = f"{', '.join(found.experts_by)}: target_parameters: [{ends}]" if found.experts_by else "no method here"
        say(f"experts are one tensor for all of a layer, which `targets` does not reach; adapted by {by}")
    if found.left_alone:
        say(f"rows of text never go through {', '.join(found.left_alone)}: `targets` leaves that alone")
    if any(group.role == HEAD and group.tied for group in found.groups):
        say("head: shares its weight with an embedding, so no adapter can be put on it")


def _counts(found: Architecture) -> None:
    say()
    if not found.tasks:
        say("trained parameters: none, since peftctl has no task to train it for")
        return
    rows = []
    for count in found.counts:
        if count.trained:
            figures = [f"{trained:,}" for trained in count.trained.values()]
            middle = count.trained.get(SIZES[1], next(iter(count.trained.values())))
            figures += [""] * (len(SIZES) - len(figures))
            rows.append([count.method, count.setting, *figures, _share(middle, found.parameters)])
    _table(["trained parameters", "by", *map(str, SIZES), "of the base"], rows, right=(2, 3, 4, 5))
    for why, methods in _refused(found.counts).items():
        flag = " (--all-methods)" if why == COUNTED_BY_PEFT else ""
        say(f"{', '.join(methods)}: {visible(why)}{flag}")


def _refused(counts: Sequence[Count]) -> dict[str, list[str]]:
    """Methods by the reason why they cannot go into the model."""
    found: dict[str, list[str]] = {}
    for count in counts:
        if count.why_not:
            found.setdefault(count.why_not.removeprefix(f"method: {count.method} "), []).append(count.method)
    return found


def _match(found: Match, experts_by: Sequence[str]) -> None:
    say()
    count = sum(each.layers for each in found.linear)
    say(f"{visible(found.pattern)} matches {count:,} linear layer{'s' if count != 1 else ''}")
    if found.linear:
        _matched(found.linear)
    if found.others:
        say("and, which is no target of most methods:")
        _matched(found.others)
    if found.near:
        say(f"{'called the same' if found.linear else 'near'}: {', '.join(found.near)}")
    if found.experts:
        by = ", ".join(experts_by) or "no method here"
        say(f"and weights of experts, which are no modules: {', '.join(found.experts)}")
        say(f"adapted by {by}: target_parameters: {written([found.pattern], listed=True)}")
    if found.taken_by:
        say(f"targets: {written([found.pattern])}  # of {', '.join(found.taken_by)}")
        say(f"of other methods, a recipe is told: {visible(found.refused)}")
    elif found.refused:
        say(f"a recipe is told: {visible(found.refused)}")
    elif found.linear:
        say(f"targets: {written([found.pattern])}")


def _matched(groups: Sequence[Matched]) -> None:
    rows = [[each.role, each.name, f"{each.layers:,} of {each.of:,}", each.type] for each in groups]
    _table(["does", "called", "layers", "type"], rows, right=(2,))


def _tree(found: Architecture) -> None:
    say()
    rows = []
    for branch in found.tree:
        name = "  " * branch.depth + (f"{branch.name}: {branch.type}" if branch.name else branch.type)
        rows.append([name, _short(branch.parameters), ", ".join(branch.shapes)])
    _table(["module", "parameters", "of its own"], rows, right=(1,))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        made.add_column(heading, justify="right" if index in right else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(Text(visible(cell)) for cell in row))
    _Console(highlight=False, width=None if sys.stdout.isatty() else WIDE).print(made)


def _print(text: Text) -> None:
    _Console(highlight=False, soft_wrap=True).print(text)


def _by(shape: Sequence[int]) -> str:
    return " × ".join(f"{size:,}" for size in shape)


def _share(part: int, whole: int) -> str:
    share = part / whole if whole else 0.0
    return f"{share:.1%}" if share >= 0.01 or not part else f"{100 * share:.2g}%"


def _short(count: int) -> str:
    """A number of parameters for people."""
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= factor:
            return f"{count / factor:.2f}{unit}"
    return str(count)
