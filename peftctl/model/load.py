"""Config, tokenizer and weights of a base model, from its folder."""

from __future__ import annotations

from typing import Any

from peftctl.errors import MachineError, UsageError
from peftctl.model import quantize
from peftctl.model.locate import Base
from peftctl.recipe.schema import ModelSettings
from peftctl.tasks import Task

LONGEST_BY_DEFAULT = 2048


def load_config(base: Base, settings: ModelSettings) -> Any:
    """The model's config. Raises UsageError where transformers knows no such architecture."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base.folder, trust_remote_code=settings.trust_remote_code)
    except (ValueError, OSError, KeyError) as error:
        raise UsageError(f"model.name: the config of {base.name} cannot be used: {_first_line(error)}") from error


def load_tokenizer(base: Base, settings: ModelSettings) -> Any:
    """The model's tokenizer. Raises UsageError where there is none, or none with character offsets."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base.folder, trust_remote_code=settings.trust_remote_code)
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise UsageError(f"model.name: the tokenizer of {base.name} cannot be loaded: {_first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UsageError(f"model.name: the tokenizer of {base.name} gives no character offsets (it is a slow one)")
    return tokenizer


def load_model(base: Base, settings: ModelSettings, task: Task, dtype: str) -> Any:
    """The weights in ``dtype``, frozen, in eval mode, on the CPU.

    Raises UsageError where the task has no class for this architecture, MachineError where memory runs out.
    """
    import torch

    try:
        model = task.model_class().from_pretrained(
            base.folder,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
            **({"quantization_config": quantize.config(settings.quantization, dtype)} if settings.quantization else {}),
        )
    except (ValueError, OSError, KeyError) as error:
        raise UsageError(f"model.name: {base.name} cannot be loaded for {task.name}: {_first_line(error)}") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise MachineError(f"not enough memory to load {base.name} in {dtype}") from error
    if settings.quantization:
        quantize.keep_weights(model)
    model.requires_grad_(False)
    return model.eval()


def choose_dtype(wanted: str) -> str:
    """``wanted``, or for ``auto`` bfloat16 where the hardware multiplies it faster than float32, else float32."""
    import torch

    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.get_device_capability() >= (8, 0) else "float32"
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16") else "float32"


def longest_row(config: Any, tokenizer: Any, wanted: int | None, taken: int = 0) -> int:
    """The longest row in tokens: ``wanted``, or what the model can attend to, at most 2048. ``taken``: positions that
    the method takes before each row.

    Raises UsageError where ``wanted`` is more than the model can attend to, or nothing is left for rows.
    """
    able = attends_to(config, tokenizer) - taken
    if able < 1:
        raise UsageError(f"method.tokens: leave no position for rows (found {taken}); the model has {able + taken}")
    if wanted is not None and wanted > able:
        beside = f" beside the method's {taken}" if taken else ""
        raise UsageError(
            f"data.max_length: more than the model can attend to{beside} (found {wanted}); allowed: at most {able}"
        )
    return wanted or min(able, LONGEST_BY_DEFAULT)


def attends_to(config: Any, tokenizer: Any) -> int:
    """How many tokens the model can attend to, by its config, or else by its tokenizer."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length)


def forward_takes(model: Any, name: str) -> bool:
    """Whether the model's own forward has a parameter of that name."""
    from inspect import signature

    return name in signature(model.forward).parameters


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
