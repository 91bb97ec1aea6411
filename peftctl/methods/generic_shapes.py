"""Whether a method's block sizes divide the layers that it is to go into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from peftctl.errors import UsageError

Shapes = Mapping[str, tuple[int, int]]
MOST_SHOWN = 12


def check(method: str, settings: Any, shapes: Shapes) -> None:
    """Raises UsageError naming a setting that does not divide some target's (inputs, outputs), with what would."""
    for setting, sides in DIVIDES.get(method, _nothing)(settings):
        value = getattr(settings, setting)
        if not value:
            continue
        sizes = sorted({shape[side] for shape in shapes.values() for side in sides})
        name = next((name for name, shape in shapes.items() if any(shape[side] % value for side in sides)), "")
        if name:
            inputs, outputs = shapes[name]
            what = " and ".join(("inputs", "outputs")[side] for side in sides)
            raise UsageError(
                f"method.{setting}: does not divide the {what} of every target (found {value}; {name} has {inputs} "
                f"inputs and {outputs} outputs); allowed: {_divisors(sizes)}"
            )
    for setting, problem in FITS.get(method, _fits)(settings, shapes):
        raise UsageError(f"method.{setting}: {problem}")


def _divisors(sizes: list[int]) -> str:
    """The common divisors of all sizes, the largest few where there are many."""
    import math

    whole = math.gcd(*sizes)
    found = [number for number in range(1, whole + 1) if whole % number == 0]
    return ", ".join(map(str, found[-MOST_SHOWN:]))


INPUTS, OUTPUTS = (0,), (1,)
BOTH = (0, 1)
Divides = Iterator[tuple[str, tuple[int, ...]]]


def _nothing(settings: Any) -> Divides:
    yield from ()


def _fits(settings: Any, shapes: Shapes) -> Iterator[tuple[str, str]]:
    yield from ()


def _miss(settings: Any) -> Divides:
    if settings.init_weights == "bat":
        yield "r", BOTH
    if settings.init_weights == "mini":
        yield "mini_r", OUTPUTS


DIVIDES: Mapping[str, Callable[[Any], Divides]] = {
    "boft": lambda _: iter([("boft_block_size", INPUTS), ("boft_block_num", INPUTS)]),
    "c3a": lambda _: iter([("block_size", BOTH)]),
    "gralora": lambda _: iter([("gralora_k", BOTH)]),
    "miss": _miss,
    "oft": lambda _: iter([("oft_block_size", INPUTS), ("r", INPUTS)]),
    "road": lambda _: iter([("group_size", OUTPUTS)]),
    "vblora": lambda _: iter([("vector_length", BOTH)]),
}


def _osf(settings: Any, shapes: Shapes) -> Iterator[tuple[str, str]]:
    least = min(min(shape) for shape in shapes.values())
    rank = settings.effective_rank
    if rank is not None and rank >= 1 and (rank >= least or rank != int(rank)):
        yield (
            "effective_rank",
            (
                f"is kept of every target, and the rest is trained (found {rank:g}); allowed: a whole number up to "
                f"{least - 1}, or a share below 1"
            ),
        )


def _adamss(settings: Any, shapes: Shapes) -> Iterator[tuple[str, str]]:
    whole = settings.num_subspaces * len(shapes)
    if settings.use_asa and settings.asa_target_subspaces >= whole:
        yield (
            "asa_target_subspaces",
            (
                f"leaves all subspaces as they are (found {settings.asa_target_subspaces}); allowed: less than the "
                f"{whole} that the targets have together"
            ),
        )


def _rank(settings: Any, shapes: Shapes) -> Iterator[tuple[str, str]]:
    least = min(min(shape) for shape in shapes.values())
    if settings.r > least:
        yield "r", f"is more than a target has (found {settings.r}); allowed: up to {least}"


def _miss_rank(settings: Any, shapes: Shapes) -> Iterator[tuple[str, str]]:
    least = min(inputs for inputs, _ in shapes.values())
    if settings.r > least:
        yield "r", f"is more than the inputs of a target (found {settings.r}); allowed: up to {least}"


FITS: Mapping[str, Callable[[Any, Shapes], Iterator[tuple[str, str]]]] = {
    "adamss": _adamss,
    "miss": _miss_rank,
    "osf": _osf,
    "psoft": _rank,
}
