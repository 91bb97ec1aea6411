"""What each method can do, tried: every cell builds on a tiny random model, trains, saves, reads back and generates."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# A family stands for what is particular about it.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},  # grouped keys
    "qwen3": {"head_dim": 16},  # norms on queries and keys
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},  # tied, soft caps
    "gpt2": {"num_key_value_heads": None, "intermediate_size": None},  # Conv1D, tied
}
STEPS, LENGTH, SEED = 12, 12, 0
SETTINGS: dict[str, dict[str, Any]] = {
    "adalora": {"rank": 4}, "loha": {"rank": 4}, "lokr": {"rank": 4}, "lora": {"rank": 4},
    "prompt_tuning": {"tokens": 6}, "p_tuning": {"tokens": 6}, "prefix_tuning": {"tokens": 6},
}  # fmt: skip

Verdict = str  # "yes", or why not


def tried(seed: int = SEED, **sizes: Any) -> dict[str, Any]:
    """For every method: on tasks, families, quantised bases, with checkpointing, and whether it merges."""
    from peftctl.methods import METHODS
    from peftctl.tasks import TASKS

    found = {}
    for method in METHODS.values():
        cell = _cell(method, TASKS["causal_lm"], seed, {**SIZES, **sizes})
        found[method.name] = {
            "tasks": {task.name: _cell(method, task, seed, {**SIZES, **sizes})() for task in TASKS.values()},
            "families": {family: cell(family=family) for family in FAMILIES},
            "quantization": {str(bits): cell(bits=bits) for bits in (4, 8)},
            "checkpointing": cell(checkpointing=True),
            "merges": cell(merge=True),
        }
    return found


def _cell(method: Any, task: Any, seed: int, sizes: dict[str, Any]) -> Callable[..., Verdict]:
    def run(**changes: Any) -> Verdict:
        try:
            _try(method, task, seed, sizes, **changes)
        except Exception as error:
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:160]
        return "yes"

    return run


def _try(  # noqa: PLR0913 - what a cell is
    method: Any,
    task: Any,
    seed: int,
    sizes: dict[str, Any],
    *,
    family: str = "llama",
    bits: int = 0,
    checkpointing: bool = False,
    merge: bool = False,
) -> None:
    import torch

    from peftctl.methods import DataFacts
    from peftctl.model import adapter, attach, targets

    torch.manual_seed(seed)
    base = _base(task, family, sizes, bits).requires_grad_(False)
    settings = method.resolve(method.settings(**SETTINGS.get(method.name, {})))
    wanted = method.choose(base) if settings.wanted is None else settings.wanted
    anatomy = attach.anatomy(base, targets.resolve(base, wanted))
    model = attach.attach(base, method, settings, anatomy, task.peft_type, DataFacts(8, 64, 32, LENGTH, STEPS))
    if checkpointing:
        model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(3, sizes["vocab_size"], (2, LENGTH))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    _train(method, settings, model, inputs)
    method.finish(model)
    trained = adapter.logits(model, inputs)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, save_embedding_layers=False)
        read = adapter.reload(model, Path(folder))
    adapter.compare(trained, adapter.logits(read, inputs))
    read.generate(**inputs, max_new_tokens=2, do_sample=False)
    if merge:
        merged = read.merge_and_unload()
        difference = float((adapter.logits(merged, inputs) - trained).abs().max())
        if difference > 1e-4 * float(trained.abs().max()):
            raise ValueError(f"merging changes the logits by {difference:.2g}")


def _base(task: Any, family: str, sizes: dict[str, Any], bits: int) -> Any:
    from transformers import AutoConfig

    from peftctl.model import quantize
    from peftctl.recipe.schema import QuantizationSettings

    chosen = {name: value for name, value in {**sizes, **FAMILIES[family]}.items() if value is not None}
    config = AutoConfig.for_model(family, **chosen)
    model = task.model_class().from_config(config)
    if not bits:
        return model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        settings = quantize.config(QuantizationSettings(bits=bits), "float32")
        model = task.model_class().from_pretrained(folder, quantization_config=settings)
    quantize.keep_weights(model)
    return model


def _train(method: Any, settings: Any, model: Any, inputs: Any) -> None:
    """Some updates on one batch. Raises ValueError where the loss does not fall, or a tensor gets no gradient."""
    import torch

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=max(method.learning_rate, 5e-3))
    silent, virtual = set(trained), method.virtual_tokens(settings)
    before = _measured(model, inputs, virtual)
    model.train()
    for step in range(STEPS):
        loss = _loss(model, inputs, virtual)
        (loss + method.penalty(model) if method.penalty else loss).backward()
        silent -= {name for name in silent if trained[name].grad is not None and bool(trained[name].grad.any())}
        optimizer.step()
        if method.after_update:
            method.after_update(model, step)
        optimizer.zero_grad()
    after = _measured(model, inputs, virtual)
    if silent:
        raise ValueError(f"{len(silent)} tensors get no gradient, {min(silent)} among them")
    if not after < before:
        raise ValueError(f"the loss does not fall ({before:.4f} to {after:.4f})")


def _measured(model: Any, inputs: Any, virtual: int) -> float:
    """The loss without dropout, beside which what some steps change is little."""
    import torch

    model.eval()
    with torch.no_grad():
        return float(_loss(model, inputs, virtual))


def _loss(model: Any, inputs: Any, virtual: int) -> Any:
    import torch

    logits = model(**inputs, use_cache=False).logits[:, virtual:]
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), inputs["input_ids"][:, 1:].flatten())
