"""Config, tokenizer and weights of a base model, from its folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from peftctl.errors import MachineError, UsageError
from peftctl.methods.parts import heads, left_alone, mark_heads, mark_unused
from peftctl.model import prequantized, quantize, whole
from peftctl.model.auto import auto_class
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


def misnamed(made: Any, config: Any) -> str:
    """Why the class ``made`` would find none of its weights in a checkpoint of its family; "" where it does: some
    classes look for them under another name than those that write checkpoints have."""
    from transformers import AutoModelForCausalLM

    usual = getattr(AutoModelForCausalLM._model_mapping.get(type(config), None), "base_model_prefix", "")
    own = made.base_model_prefix
    if not (usual and own) or usual == own or made.__name__ in (getattr(config, "architectures", None) or ()):
        return ""
    return (
        f"has its weights under {usual!r}, and transformers' {made.__name__} looks for them under {own!r}: it would be "
        "random numbers"
    )


def load_model(
    base: Base, settings: ModelSettings, task: Task, dtype: str, note: Callable[[str], None] = lambda _: None
) -> Any:
    """The weights in ``dtype``, frozen, in eval mode, on the CPU. ``note`` hears what of them is not used.

    Raises UsageError where the task has no class for this architecture, or the weights are not the whole of it;
    MachineError where memory runs out or a package is missing.
    """
    import torch

    config = load_config(base, settings)
    task.configure(config)
    kept = prequantized.prepare(config)
    try:
        model, info = auto_class(task, config).from_pretrained(
            base.folder,
            config=config,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are named below
            **_quantising(settings, config, task, dtype),
        )
    except ImportError as error:
        raise MachineError(f"model.name: {base.name} needs a package: {_first_line(error)}") from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise MachineError(f"not enough memory to load {base.name} in {dtype}") from error
    except (ValueError, OSError, KeyError, AttributeError, RuntimeError) as error:
        if "allocate memory" in str(error):  # how torch says it of a CPU's
            raise MachineError(f"not enough memory to load {base.name} in {dtype}") from error
        raise UsageError(f"model.name: {base.name} cannot be loaded for {task.name}: {_first_line(error)}") from error
    alone = type(model.config) is not type(config)
    new = whole.check(base.name, info, model, (lambda _: None) if alone else note, may_be_new(model, task))
    if task.head:
        mark_heads(model, new)
    if settings.quantization or (kept and kept.bits):
        quantize.keep_weights(model)
    if kept and (kept.bits or kept.unpacked):
        quantize.bring_to(model, getattr(torch, dtype))
    model.requires_grad_(False)
    if alone:
        note(f"{base.name}: its text model alone is loaded, a {type(model).__name__}, and nothing else of it")
    _tell(base, model, note)
    mark_unused(model, task.unused)
    return model.eval()


def _quantising(settings: ModelSettings, config: Any, task: Task, dtype: str) -> dict[str, Any]:
    """What ``from_pretrained`` is told of quantising. A head, which is trained, stays whole."""
    from peftctl.model import skeleton

    if settings.quantization is None:
        return {}
    whole = heads(skeleton.empty(config, task)) if task.head else ()
    return {"quantization_config": quantize.config(settings.quantization, dtype, whole)}


def may_be_new(model: Any, task: Task) -> Callable[[str], bool]:
    """Which tensors a checkpoint may lack: what the task has no use for, and for one with a head what is in no layer,
    of which there are several."""
    return lambda name: name.split(".")[0] in task.unused or (task.head and not re.search(r"\.\d+\.", name))


def _tell(base: Base, model: Any, note: Callable[[str], None]) -> None:
    """Say what of a model that sees or hears rows of text leave alone."""
    if parts := left_alone(model):
        inside = [module for part in parts for module in model.get_submodule(part).modules()]
        count = sum(next(module.parameters(recurse=False), None) is not None for module in inside)
        note(f"{base.name}: rows of text do not go through {_and(parts)}, and {count} modules there are left alone")


def _and(names: tuple[str, ...], shown: int = 4) -> str:
    more = [f"{len(names) - shown + 1} more"] if len(names) > shown else []
    words = [*names[: shown - 1], *more] if more else list(names)
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


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
