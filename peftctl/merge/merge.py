"""One path for every merge: refuse early, write aside, check, manifest, rename."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from peftctl.atomic import held, inventory, publish_directory, write_json
from peftctl.errors import MachineError, UsageError
from peftctl.merge import check, compare, files, memory, stream
from peftctl.merge.adapters import Combine
from peftctl.merge.plan import Prepared, Together, prepare
from peftctl.merge.source import Source
from peftctl.merge.weights import Weights
from peftctl.model import identity, load, prequantized
from peftctl.sizes import size

SPARE = 200_000_000  # bytes beside the weights


@dataclass(frozen=True)
class Options:
    """``dtype``: None for the base's own. ``original``: of a base that was quantised for training, the weights as they
    are stored. ``shard_bytes``: the most in a file."""

    dtype: str | None = None
    original: bool = False
    shard_bytes: int = 5_000_000_000
    combine: Combine = field(default_factory=Combine)


def merge(source: Source, out: Path, options: Options, note: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Publish ``source`` as a model in ``out`` and return the manifest written there. Where ``out`` holds just that
    already, nothing is done. ``note`` hears what takes time and what is to be known.

    Raises UsageError where it cannot be merged or ``out`` holds something else, MachineError where disk or memory do
    not suffice, VerificationError where what was written is not what was to be written. Then ``out`` is as it was.
    """
    _check_place(source, out)
    asked = {"sources": source.facts(), "options": asdict(options)}
    if (there := held(out, asked)) is not None:
        note(f"{out} holds this already")
        return there
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out}: exists already, and is not what this merge gives", "name another place, or remove it")
    with publish_directory(out.absolute()) as folder:
        facts = {**write(source, folder, options, note), "manifest": 1, "kind": "merged", **asked}
        files.card(source, facts["how"] | facts["checked"], folder)
        manifest = {**facts, "files": inventory(folder)}
        write_json(folder / "manifest.json", manifest)
    return manifest


def _check_place(source: Source, out: Path) -> None:
    """Raises UsageError where ``out`` is taken, as far as that is seen without hashing, or is in what is merged."""
    place = out.absolute()
    within = [*(part.folder for part in source.parts), source.base.folder, *([source.run.path] if source.run else [])]
    if inside := next((each for each in within if place.is_relative_to(each.absolute())), None):
        raise UsageError(f"{out}: lies in {inside}, which is to be merged", "name a place outside of it")
    if os.path.lexists(out) and not out.is_dir():
        raise UsageError(f"{out}: exists already", "name another place, or remove it first")
    if out.is_dir() and any(out.iterdir()) and not (out / "manifest.json").exists():
        raise UsageError(f"{out}: exists already, with something in it", "name another place, or remove it first")


def write(source: Source, folder: Path, options: Options, note: Callable[[str], None]) -> dict[str, Any]:
    """Fill the empty ``folder`` with the merged model, checked; what was done and found, for the manifest."""
    config = load.load_config(source.base, source.model)
    source.task.configure(config)
    load.load_tokenizer(files.with_tokenizer(source), source.model)  # what is wrong with it is said before weights are
    kept = prequantized.found(config)
    with (
        Weights(identity.weight_files(source.base.folder)) as weights,
        tempfile.TemporaryDirectory(prefix="peftctl-merge-") as scratch,
    ):
        dtype = options.dtype or weights.usual()
        try:
            if kept is not None:
                raise Together(f"its weights are quantised as they come ({kept})")
            if getattr(config, "auto_map", None) and source.model.trust_remote_code:
                raise Together("it brings its own code")
            prepared = prepare(source, config, weights, options.dtype, options.original, options.combine, Path(scratch))
        except Together as why:
            note(f"{source.base.name} is merged in memory as a whole: {why}")
            how = _together(source, folder, options, dtype, str(why), Path(scratch))
        else:
            how = _by_layers(prepared, source, folder, options, note)
            del prepared
    _beside(source, config, folder)
    began = time.monotonic()
    found = how.pop("checked") | _compared(source, options, folder, dtype, note)
    how["seconds_checking"] += time.monotonic() - began
    how |= {"dtype": dtype if options.dtype else f"{dtype}, as the base", "onto": _onto(source, options)}
    return {"how": how, "checked": {"verified": "yes", **found}}


def _by_layers(
    prepared: Prepared, source: Source, folder: Path, options: Options, note: Callable[[str], None]
) -> dict[str, Any]:
    total = sum(tensor.size for tensor in prepared.plan.wanted.values())
    check_room(folder, total)
    note(f"writing {size(total)} of weights")
    began = time.monotonic()
    stream.write(prepared.plan, prepared.values, folder, options.shard_bytes)
    written = time.monotonic()
    note("comparing what was written with base and adapter")
    files.config(source, folder, prepared.config, options.dtype)
    with check.files(folder) as weights:
        found = {**check.tensors(prepared, weights), **check.layers(prepared, weights)}
    if lost := found["lost_in_rounding"]:
        note(
            f"{len(lost)} of {len(prepared.changed)} tensors that were trained are as they were: "
            "what training changed in them is less than their dtype can show"
        )
    how = {"way": "layer by layer", "bytes": total, "checked": found}
    return how | {"seconds_writing": written - began, "seconds_checking": time.monotonic() - written}


def _together(source: Source, folder: Path, options: Options, dtype: str, why: str, scratch: Path) -> dict[str, Any]:
    if source.model.quantization is not None and not options.original:
        raise UsageError(
            f"{source.base.name} was quantised for training, and has to be merged in memory as a whole ({why}), where "
            "only its weights as they are stored can be merged into",
            "--onto original",
        )
    config = load.load_config(source.base, source.model)
    total = prequantized.weight_bytes(config, source.base.folder, dtype)
    check_room(folder, total)
    began = time.monotonic()
    memory.write(source, dtype, options.combine, folder, options.shard_bytes, scratch)
    written = time.monotonic()
    with check.files(folder) as weights:
        check.finite(weights)
    how = {"way": "in memory", "why": why, "bytes": total, "checked": {}}
    return how | {"seconds_writing": written - began, "seconds_checking": time.monotonic() - written}


def _beside(source: Source, config: Any, folder: Path) -> None:
    files.others(source, folder)
    if source.task.generates:
        files.generation(source, config, folder)


def _compared(
    source: Source, options: Options, folder: Path, dtype: str, note: Callable[[str], None]
) -> dict[str, Any]:
    if not compare.fits(source.base.folder):
        note("the whole model is more than half of the memory that is free: it was compared layer by layer alone")
        return {"compared": "layers"}
    # In 8 bits training rounds what goes into a layer too, which no weights can show.
    kept = source.model.quantization
    judged = kept is None or (kept.bits == 4 and not options.original)
    return {
        "compared": "logits",
        "judged": judged,
        **compare.models(source, options.combine, folder, dtype, judged, note),
    }


def _onto(source: Source, options: Options) -> str:
    if source.model.quantization is None:
        return "the base's weights"
    return "the base's weights as they are stored" if options.original else "the base's weights as training saw them"


def check_room(folder: Path, bytes_: int, what: str = "the merged model") -> None:
    """Raises MachineError where ``folder``'s disk has no room for so many bytes of ``what``."""
    free = shutil.disk_usage(folder).free
    if bytes_ + SPARE > free:
        raise MachineError(
            f"{folder.parent}: {size(free)} are free on this disk; {what} takes {size(bytes_)}, and {size(SPARE)} are "
            "to stay free"
        )
