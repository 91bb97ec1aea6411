"""Adapters baked into weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from peftctl.cli.words import Base, Json, known
from peftctl.errors import UsageError
from peftctl.outcomes import outcomes

UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
COMBINATIONS = ["cat", "linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
WITH_DENSITY = ("ties", "dare_linear", "dare_ties", "magnitude_prune")
DTYPES = ["float32", "bfloat16", "float16"]


@outcomes
def merge(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="[RUN] OUT",
            help="Directory of a finished run, or an adapter's folder; and the folder to make. With --adapter OUT.",
        ),
    ],
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="RUN[:WEIGHT]", help="One of several that are merged together, in place of RUN."),
    ] = None,
    combine: Annotated[
        str | None, typer.Option(help=f"How several become one: {', '.join(COMBINATIONS)}. Default: cat, their sum.")
    ] = None,
    density: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="The share of each update that is kept, where others are not."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Fixes what `dare` leaves out.")] = None,
    dtype: Annotated[str | None, typer.Option(help=f"{', '.join(DTYPES)}. Default: the base's own.")] = None,
    onto: Annotated[
        str | None,
        typer.Option(
            help="Of a base that was quantised for training: dequantized, its weights as training saw them (the "
            "default), or original, as they are stored."
        ),
    ] = None,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="The most in a file of weights.")] = "5GB",
    base: Base = None,
    force_base: Annotated[
        bool, typer.Option("--force-base", help="Merge into the base although it is not the one trained on.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bake an adapter into its base model's weights, checked against the two before it is published."""
    from peftctl import console, quiet
    from peftctl.console import merges
    from peftctl.merge import merge as merging
    from peftctl.merge.adapters import Combine
    from peftctl.merge.source import combine as together
    from peftctl.merge.source import open_source

    out, named = _named(paths, adapter or [])
    if force_base and base is None:
        raise UsageError("--force-base: has no effect without --base")
    _check_words(len(named), combine, density, seed, dtype, onto)
    how = Combine(combine or "cat", density, seed or 0)
    options = merging.Options(dtype, onto == "original", _bytes(shard_size), how)
    quiet.no_progress_bars()
    opened = [(open_source(path, base, console.note, force=force_base), weight) for path, weight in named]
    source = together(opened) if len(opened) > 1 else opened[0][0]
    if onto is not None and source.model.quantization is None:
        raise UsageError(f"--onto: has no effect on {named[0][0]}, whose base was not quantised (found {onto})")
    manifest = merging.merge(source, out, options, console.note)
    if as_json:
        console.say_json(manifest)
    else:
        merges.show(out, manifest)


def _named(paths: list[Path], adapters: list[str]) -> tuple[Path, list[tuple[Path, float]]]:
    """OUT, and what is merged with which weight."""
    wanted = 1 if adapters else 2
    if len(paths) != wanted:
        said = "OUT alone with --adapter" if adapters else "RUN and OUT"
        raise UsageError(f"merge takes {said} (found {' '.join(map(str, paths))})")
    if str(paths[-1]) == ".":  # what an empty word becomes, too
        raise UsageError("OUT: names no folder to make")
    if not adapters:
        return paths[1], [(paths[0], 1.0)]
    if len(adapters) == 1:
        raise UsageError(f"--adapter: names one of several (found {adapters[0]} alone)", "merge RUN OUT merges one")
    return paths[0], [_weighed(each) for each in adapters]


def _weighed(written: str) -> tuple[Path, float]:
    path, colon, weight = written.rpartition(":")
    if colon and not Path(written).exists():
        try:
            number = float(weight)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise UsageError(f"--adapter: {weight!r} is no weight (found {written}); allowed: RUN:0.7")
        return Path(path), number
    return Path(written), 1.0


def _check_words(
    count: int, combine: str | None, density: float | None, seed: int | None, dtype: str | None, onto: str | None
) -> None:
    for flag, word, allowed in (
        ("--combine", combine, COMBINATIONS),
        ("--dtype", dtype, DTYPES),
        ("--onto", onto, ["dequantized", "original"]),
    ):
        if word is not None:
            known(flag, word, allowed)
    how = combine or "cat"
    given: list[tuple[str, Any]] = [("--combine", combine), ("--density", density), ("--seed", seed)]
    for flag, value in given:
        if value is not None and count < 2:
            raise UsageError(f"{flag}: has no effect on one adapter (found {value}); several are named with --adapter")
    if density is not None and how not in WITH_DENSITY:
        raise UsageError(f"--density: has no effect with {how}; allowed: {', '.join(WITH_DENSITY)}")
    if density == 0:
        raise UsageError("--density: keeps nothing of any adapter (found 0); allowed: more than 0, at most 1")
    if density is None and count > 1 and how in WITH_DENSITY:
        raise UsageError(f"--combine: {how} needs --density, the share of each update that is kept")
    if seed is not None and not how.startswith("dare"):
        raise UsageError(f"--seed: has no effect with {how}, which leaves nothing to chance")


def _bytes(written: str) -> int:
    number = written.upper().rstrip("BIKMGT")
    unit = written.upper()[len(number) :]
    try:
        size = int(float(number) * UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        size = 0
    if size < 1:
        what = "has no unit" if written.replace(".", "", 1).isdecimal() else "no size"
        raise UsageError(f"--shard-size: {what} (found {written!r}); allowed: 5GB, 500MB or the like")
    return size
