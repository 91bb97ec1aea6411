"""Whether what was written is what was to be written, and computes what base and adapter compute."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftctl.errors import VerificationError
from peftctl.fast import equal
from peftctl.inspection.keys import some
from peftctl.merge import pages
from peftctl.merge.blank import clear
from peftctl.merge.plan import Prepared
from peftctl.merge.shards import raw
from peftctl.merge.stream import fill
from peftctl.merge.units import Unit
from peftctl.merge.weights import Weights, blocks
from peftctl.model import identity

SHOWN = 3
VECTORS = 8  # random inputs of a layer


def files(folder: Path) -> Weights:
    """The weights in ``folder``."""
    return Weights(identity.weight_files(folder))


def tensors(prepared: Prepared, written: Weights) -> dict[str, Any]:
    """Compare every tensor ``written`` with the base's: what training did not change is the same, byte for byte, and
    what it changed is not. Returns how many are which, and ``lost``: those that were to change and did not, since the
    change is smaller than their dtype can show.

    Raises VerificationError naming tensors that differ from the base and should not, and where nothing changed.
    """
    changed = set(prepared.changed)
    same, lost, wrong = 0, [], []
    for name, parameter in prepared.plan.from_parameter.items():
        expected = _as_base(name, parameter, prepared)
        if expected is None:
            continue
        alike = _alike(expected, written, name)
        if name in changed:
            lost += [name] if alike else []
        elif alike:
            same += 1
        else:
            wrong.append(name)
    if wrong:
        raise VerificationError(
            f"{some(wrong)} of the tensors written differ from the base's and should not; nothing was published"
        )
    moved = [name for name in changed if name not in lost]
    if not moved:
        raise VerificationError("merging changed nothing; nothing was published", "was anything trained?")
    lost = [name for name in lost if not name.endswith(".bias")]
    return {"changed": len(moved), "same": same, "lost_in_rounding": sorted(lost)}


def layers(prepared: Prepared, written: Weights) -> dict[str, Any]:
    """Compare, layer by layer, what the merged weights compute of random inputs with what base and adapter do, in
    float32. Returns how many, and the worst difference relative to the output's norm, and where.

    Raises VerificationError naming the worst where they differ by more than rounding to the dtype explains.
    """
    import torch

    found: dict[str, tuple[float, float]] = {}
    for unit in prepared.units:
        disk = {each: name for name, each in prepared.plan.from_parameter.items() if each in unit.parameters}
        if not all(each in disk for each in unit.parameters):
            continue  # a second name of weights that stay tied
        if unit.rows is not None and f"{unit.name}.weight" not in prepared.values.rounded:
            difference: float | None = _by_rows(unit, prepared, written, disk[f"{unit.name}.weight"])
        else:
            difference = _layer(unit, prepared, {parameter: written.read(name) for parameter, name in disk.items()})
        if difference is not None:
            dtype = getattr(torch, prepared.values.out_dtype(unit.parameters[0]))
            found[unit.name] = (difference, equal.tolerance(dtype))
    worst = sorted(found, key=lambda name: found[name][0] / found[name][1], reverse=True)
    over = [name for name in worst if not found[name][0] <= found[name][1]]
    if over:
        shown = ", ".join(f"{name} by {found[name][0]:.2g} (allowed: {found[name][1]:.2g})" for name in over[:SHOWN])
        raise VerificationError(
            f"{len(over)} of {len(found)} merged layers do not compute what base and adapter do: {shown}; "
            "nothing was published"
        )
    if not worst:
        return {"layers": 0}
    return {
        "layers": len(found),
        "worst_layer": worst[0],
        "worst_difference": found[worst[0]][0],
        "tolerance_of_layers": found[worst[0]][1],
    }


def finite(written: Weights) -> None:
    """Raises VerificationError naming a tensor with numbers that are not finite."""
    for name, stored in written.stored.items():
        for first in range(0, stored.rows, 4096):
            rows = slice(first, min(first + 4096, stored.rows)) if stored.shape else None
            value = written.read(name, rows)
            if value.is_floating_point() and value.numel() and not math.isfinite(float(value.float().sum())):
                raise VerificationError(f"merging gives numbers in {name} that are not finite; nothing was published")


def _layer(unit: Unit, prepared: Prepared, merged: Mapping[str, Any]) -> float | None:
    """How far the two are apart, relative to the norm of the output; None for a layer of which that is not known."""
    import torch

    base = unit.base()
    inputs = _inputs(base, merged[unit.parameters[0]])
    if inputs is None:
        return None
    own = copy.deepcopy(base).to(torch.float32)
    for name, parameter in own.named_parameters():
        parameter.data = merged[f"{unit.name}.{name}"].to(torch.float32)
    fill(unit, prepared.values, torch.float32)
    with torch.no_grad():
        wanted, found = unit.module(inputs), own(inputs)
    for parameter in base.parameters():
        if parameter.dim() > 1:
            clear(parameter)
    for parameter in unit.module.parameters():
        pages.let_go(parameter)
    norm = float(wanted.double().norm())
    return float((found.double() - wanted.double()).norm()) / norm if norm else float(found.double().norm())


def _by_rows(unit: Unit, prepared: Prepared, written: Weights, name: str) -> float:
    """The same of a low-rank update, by blocks of rows; what the layer adds beside products is no part of it."""
    import torch

    assert unit.rows is not None
    down, up, scale = unit.rows.down.float(), unit.rows.up.float(), unit.rows.scale
    inputs = torch.randn(VECTORS, down.shape[1], generator=torch.Generator().manual_seed(equal.SEED))
    between = (inputs @ down.T) * scale
    apart = total = 0.0
    for cut in blocks(len(up), 4 * down.shape[1]):
        wanted = inputs @ prepared.values.rows(f"{unit.name}.weight", cut).float().T + between @ up[cut].T
        found = inputs @ written.read(name, cut).float().T
        apart += float((found.double() - wanted.double()).square().sum())
        total += float(wanted.double().square().sum())
    pages.let_go(unit.rows.down)
    pages.let_go(unit.rows.up)
    return math.sqrt(apart / total) if total else math.sqrt(apart)


def _inputs(base: Any, weight: Any) -> Any:
    """Random inputs of a layer: vectors, or ids."""
    import torch
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    drawn = torch.Generator().manual_seed(equal.SEED)
    if isinstance(base, nn.Embedding):
        return torch.randint(len(weight), (VECTORS * VECTORS,), generator=drawn)
    if isinstance(base, nn.Linear):
        return torch.randn(VECTORS, base.in_features, generator=drawn)
    if isinstance(base, Conv1D):
        return torch.randn(VECTORS, len(weight), generator=drawn)
    if type(base).__name__.endswith("Norm") and weight.dim() == 1:
        return torch.randn(VECTORS, len(weight), generator=drawn)
    return None


def _alike(expected: Iterator[bytes], written: Weights, name: str) -> bool:
    """Whether the tensor written is, from its first byte to its last, what is expected of it in pieces."""
    at = 0
    for piece in expected:
        if written.part_of(name, at, len(piece)) != piece:
            return False
        at += len(piece)
    return at == written.stored[name].size


def _as_base(name: str, parameter: str, prepared: Prepared) -> Iterator[bytes] | None:
    """The bytes that the tensor would have, had nothing been trained, in pieces; None where the base has none."""
    import torch

    values = prepared.values
    if not parameter or values.as_it_stands(parameter):
        return values.weights.bytes_of(values.disk(parameter) or name if parameter else name)
    if values.disk(parameter) is None:
        return None
    dtype = getattr(torch, values.out_dtype(parameter))
    plain = replace(values, rounded=())
    return (bytes(raw(piece.to(dtype))) for piece in plain.pieces(parameter))
