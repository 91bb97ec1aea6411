"""A GGUF file written tensor by tensor, in blocks of rows, so that no tensor is ever whole in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from peftctl.gguf.numbers import encoded, stored_as
from peftctl.gguf.tensors import Tensor
from peftctl.merge.weights import Weights, blocks


def write(
    path: Path,
    architecture: str,
    fields: Mapping[str, Any],
    tensors: Sequence[Tensor],
    vectors: Mapping[str, Sequence[float]],
    weights: Weights,
    type_: str,
) -> None:
    """Write a model: ``fields`` by their whole keys, ``tensors`` from ``weights``, and ``vectors`` as they are.

    Raises MachineError where a file ends before its tensors do.
    """
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    try:
        for key, value in fields.items():
            add(writer, key, value)
        flat = {name: np.asarray(values, dtype=np.float32) for name, values in vectors.items()}
        for name, value in flat.items():
            _announce(writer, name, value.shape, "f32")
        for tensor in tensors:
            _announce(writer, tensor.name, tensor.shape, stored_as(type_, plain=tensor.plain))
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        file = writer.fout[0]
        writer.write_padding(file, file.tell())
        for value in flat.values():
            _pad(writer, file, file.write(value.tobytes()))
        for tensor in tensors:
            as_ = stored_as(type_, plain=tensor.plain)
            _pad(writer, file, sum(file.write(encoded(rows, as_).tobytes()) for rows in rows_of(tensor, weights)))
    finally:
        writer.close()


def add(writer: Any, key: str, value: Any) -> None:
    """One of the file's fields, in the type that llama.cpp reads it as."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _announce(writer: Any, name: str, shape: Sequence[int], type_: str) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import quant_shape_to_byte_shape

    kind = GGMLQuantizationType[type_.upper()]
    plain = {"f32": np.float32, "f16": np.float16}
    if type_ in plain:
        count = int(np.prod(shape)) * np.dtype(plain[type_]).itemsize
        writer.add_tensor_info(name, shape, np.dtype(plain[type_]), count)
    else:
        bytes_ = quant_shape_to_byte_shape(shape, kind)
        writer.add_tensor_info(name, bytes_, np.dtype(np.uint8), int(np.prod(bytes_)), raw_dtype=kind)


def _pad(writer: Any, file: Any, written: int) -> None:
    writer.write_padding(file, written)


def rows_of(tensor: Tensor, weights: Weights) -> Iterator[Any]:
    """The tensor's rows in order, in float32 arrays [rows, width]."""
    import torch

    for part in tensor.parts:
        stored = weights.stored[part]
        width = stored.row_bytes * (2 if stored.dtype in ("float16", "bfloat16") else 1)
        for cut in blocks(stored.rows, width, tensor.head or 64):
            value = weights.read(part, cut if stored.shape else None).to(torch.float32)
            value = value.reshape(value.shape[0] if stored.shape else 1, -1)
            if tensor.head:
                value = interleaved(value, tensor.head)
            if tensor.add:
                value = value + tensor.add
            yield value.reshape(1, -1).numpy() if len(tensor.shape) == 1 else value.numpy()


def interleaved(value: Any, head: int) -> Any:
    """Rows [heads * head, width] whose halves of each head are interleaved: row i and row i + head/2 become
    neighbours, which is how llama.cpp rotates them."""
    return value.reshape(-1, 2, head // 2, value.shape[-1]).transpose(1, 2).reshape(value.shape)
