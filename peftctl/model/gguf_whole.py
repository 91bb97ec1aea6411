"""Whether a GGUF file is all there, by its own head: readers say of one that is not whatever they stumble over."""

from __future__ import annotations

from math import prod
from pathlib import Path

from peftctl.errors import UsageError
from peftctl.model.gguf_reader import ALIGNMENT, UINT32, Reader

AGAIN = "fetch or copy it again"


def check_whole(path: Path) -> None:
    """Raises UsageError where the file ends before its head or its tensors do."""
    with path.open("rb") as file:
        reader = Reader(path, file)
        try:
            end = _end(reader)
        except UsageError as error:
            raise UsageError(f"model.name: {error.message}", AGAIN) from None
    if reader.size < end:
        raise UsageError(
            f"model.name: {path} is not whole ({reader.size:,} bytes, where its tensors need {end:,})", AGAIN
        )


def _end(reader: Reader) -> int:
    """Where the last tensor ends, in bytes from the file's beginning."""
    _, tensors, keys = reader.begin()
    alignment = ALIGNMENT
    for _ in range(keys):
        key, kind = reader.text(), reader.number("I")
        if key == b"general.alignment" and kind == UINT32:
            alignment = reader.number("I") or ALIGNMENT
        else:
            reader.skip_value(kind)
    ends = [_tensor(reader) for _ in range(tensors)]
    start = -(-reader.file.tell() // alignment) * alignment
    return start + max(ends, default=0)


def _tensor(reader: Reader) -> int:
    """Where a tensor ends, in bytes from where the first begins."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    reader.text()
    shape = [reader.number("Q") for _ in range(reader.number("I"))]
    kind, offset = reader.number("I"), reader.number("Q")
    try:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except (ValueError, KeyError):  # whether it can be read is for the reader to say
        return offset
    taken: int = prod(shape) // block * size
    return offset + taken
