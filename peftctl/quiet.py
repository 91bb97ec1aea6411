"""Libraries' own chatter, turned down once, before they are imported: peftctl says what there is to say."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def quiet_libraries() -> None:
    """Progress bars off, their loggers at errors only, and no telemetry. What the user set stays as set."""
    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TQDM_DISABLE": "1",
    }.items():
        os.environ.setdefault(name, value)
    for library in ("bitsandbytes", "accelerate", "peft", "torch.distributed"):
        logging.getLogger(library).setLevel(logging.ERROR)
    # What their authors have to say to each other (deprecations, mostly); tests still see these as errors.
    warnings.filterwarnings("ignore", module=r"(transformers|peft|accelerate|torch|huggingface_hub)(\.|$)")


def no_progress_bars() -> None:
    """transformers' bars for loading weights, which its environment variables leave on."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()


@contextmanager
def quiet_graphs() -> Iterator[None]:
    """While a model is turned into a graph: what torch and ONNX's libraries say of their own insides."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
