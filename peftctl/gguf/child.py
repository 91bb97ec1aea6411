"""The process in which llama.cpp runs: it is asked with a JSON file, and answers with one.

    python -m peftctl.gguf.child REQUEST.json

It is a process of its own since llama.cpp ends a process that asks it for something it cannot do.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FLOAT32, ERROR = 0, 4  # ggml's numbers for them
KEPT: list[Any] = []  # what llama.cpp calls back, which nothing else holds
BUFFER = 256 * 2**20  # bytes that the quantiser holds of a tensor


def quantise(request: Mapping[str, Any]) -> dict[str, Any]:
    """``whole`` as ``path``, a file of ``file_type``."""
    import llama_cpp

    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype, options.nthread, options.max_buf_size = request["file_type"], _threads(), BUFFER
    failed = llama_cpp.llama_model_quantize(
        request["whole"].encode(), request["path"].encode(), ctypes.pointer(options)
    )
    if failed:
        raise RuntimeError(f"llama_model_quantize gave {failed}")
    return {}


def ask(request: Mapping[str, Any]) -> dict[str, Any]:
    """What the model in ``path``, with the adapter in ``lora`` where there is one, says of ``rows`` of ids.

    In the answer are the ``ids`` of each of ``texts``, those of ``chats``, which begin as they stand, ``ends`` (which
    of these ids end a text), ``template``, and ``written``: up to ``most`` ids that follow each of ``prompts``, the
    likeliest each time. The logits of all rows, one after another, float32 [positions, vocabulary], are written to the
    file ``logits``.
    """
    import llama_cpp
    import numpy as np

    rows: Sequence[Sequence[int]] = request["rows"]
    prompts: Sequence[Sequence[int]] = request["prompts"]
    most = int(request["most"])
    context = max([len(row) for row in rows] + [len(prompt) + most for prompt in prompts] + [8])
    threads = _threads()
    model = llama_cpp.Llama(
        request["path"], n_ctx=context, n_batch=context, n_ubatch=context, logits_all=True, n_threads=threads,
        n_threads_batch=threads, n_gpu_layers=0, type_k=FLOAT32, type_v=FLOAT32, flash_attn=False, verbose=False,
        lora_path=request.get("lora"),
    )  # fmt: skip
    with open(request["logits"], "wb") as file:
        for row in rows:
            file.write(np.ascontiguousarray(_logits(model, row), dtype=np.float32).tobytes())
    vocabulary = llama_cpp.llama_model_get_vocab(model.model)
    return {
        "ids": [_ids(model, text, whole=True) for text in request["texts"]],
        "chats": [_ids(model, text, whole=False) for text in request["chats"]],
        "ends": [number for number in request["ends"] if llama_cpp.llama_vocab_is_eog(vocabulary, number)],
        "template": model.metadata.get("tokenizer.chat_template"),
        "written": [_written(model, prompt, most, set(request["ends"])) for prompt in prompts],
        "description": model.metadata.get("general.architecture"),
    }


def _ids(model: Any, text: str, *, whole: bool) -> list[int]:
    ids: list[int] = model.tokenize(text.encode("utf-8"), add_bos=whole, special=True)
    return ids


def _logits(model: Any, row: Sequence[int]) -> Any:
    model.reset()
    model.eval(row)
    return model.scores[: len(row)]


def _written(model: Any, prompt: Sequence[int], most: int, ends: set[int]) -> list[int]:
    model.reset()
    model.eval(prompt)
    written: list[int] = []
    while len(written) < most:
        written.append(int(model.scores[model.n_tokens - 1].argmax()))
        if written[-1] in ends:
            break
        model.eval(written[-1:])
    return written


def _threads() -> int:
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def _heard() -> list[str]:
    """What llama.cpp says of errors, from here on; its Python package would throw that away."""
    import llama_cpp

    said: list[str] = []

    def hear(level: int, text: bytes, _: Any) -> None:
        if level == ERROR:
            said.append(text.decode("utf-8", "replace").strip())

    KEPT.append(llama_cpp.llama_log_callback(hear))
    llama_cpp.llama_log_set(KEPT[-1], None)
    return said


def main() -> int:
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    said = _heard()
    try:
        answer = {"quantise": quantise, "ask": ask}[request["do"]](request)
    except Exception as error:  # whatever it is, it is the answer
        sys.stderr.write("\n".join(filter(None, said)) or f"{type(error).__name__}: {error}")
        return 1
    Path(request["answer"]).write_text(json.dumps(answer), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
