"""What each method can do, tried: every cell builds on a tiny random model, trains, saves, reads back and generates."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
# A family stands for what is particular about it.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},  # grouped keys, no biases
    "qwen2": {},  # biases on queries, keys and values
    "qwen3": {"head_dim": 16},  # norms on queries and keys
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16},  # tied, soft caps
    "gemma3_text": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32},  # tied, local attention
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},  # experts
    "gpt2": {"num_key_value_heads": None, "intermediate_size": None},  # Conv1D, tied, learned positions
}
# What the tasks but causal_lm are tried on: models whose tokens see those after them, and one that reads and writes.
READERS: dict[str, dict[str, Any]] = {
    "bert": {"num_key_value_heads": None, "initializer_range": 0.2},
    "t5": {
        "num_key_value_heads": None, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4,
        "decoder_start_token_id": 0, "dropout_rate": 0.0,
    },
}  # fmt: skip
FAMILY_OF = {
    "seq2seq_lm": "t5", "seq_cls": "bert", "token_cls": "bert", "question_answering": "bert",
    "feature_extraction": "bert",
}  # fmt: skip
ENCODERS = ("bert",)
LABELS = ("a", "b", "c")
BITS = (4, 8)
STEPS, LENGTH, SEED = 12, 12, 0
QUICK = 5e-3  # the least learning rate that so few steps show much at


def two_adapters(base: Any, folder: Path) -> dict[str, Any]:
    """For a mixture: two LoRA adapters of random numbers on every linear layer of ``base``."""
    import torch

    from peftctl.methods import experts
    from peftctl.model import targets

    shapes = targets.resolve(base, [targets.ALL_LINEAR])
    for name in ("first", "second"):
        tensors = {
            layer: (torch.randn(4, inputs), torch.randn(outputs, 4) / 10) for layer, (inputs, outputs) in shapes.items()
        }
        experts.write(folder / name, {"r": 4, "lora_alpha": 4}, tensors, task_type="CAUSAL_LM")
    return {"adapters": (str(folder / "first"), str(folder / "second"))}


# A method's settings where its defaults will not do, or what makes them of a base and a folder to write in.
SETTINGS: dict[str, Any] = {
    "adalora": {"rank": 4}, "loha": {"rank": 4}, "lokr": {"rank": 4}, "lora": {"rank": 4},
    "prompt_tuning": {"tokens": 6}, "p_tuning": {"tokens": 6}, "prefix_tuning": {"tokens": 6}, "xlora": two_adapters,
    # PEFT's own, by PEFT's names.
    "adamss": {"r": 16, "num_subspaces": 3}, "adaption_prompt": {"adapter_len": 4}, "c3a": {"block_size": 16},
    "cartridge": {"num_virtual_tokens": 6}, "fourierft": {"n_frequency": 200}, "gralora": {"r": 4, "alpha": 8},
    "hira": {"r": 4}, "miss": {"r": 8}, "oft": {"oft_block_size": 8}, "peanut": {"r": 4}, "psoft": {"r": 8},
    "pvera": {"r": 16}, "randlora": {"r": 8, "randlora_alpha": 32}, "road": {"group_size": 16}, "shira": {"r": 2},
    "supertuning": {"sparsity": 0.9}, "tinylora": {"u": 16}, "trainable_tokens": {"token_indices": list(range(3, 40))},
    "vblora": {"vector_length": 16, "num_vectors": 32}, "vera": {"r": 16}, "waveft": {"n_frequency": 200},
}  # fmt: skip

Verdict = str  # "yes", or why not
YES = "yes"


class NotMerged(Exception):
    """All but merging went well. Its text says what merging did."""


class NotFalling(ValueError):
    """The loss is no lower after training than before."""


def tried(names: Iterable[str] | None = None, seed: int = SEED, **sizes: Any) -> dict[str, Any]:
    """For every method, or those in ``names``: on tasks, families, quantised bases, in bfloat16, with checkpointing,
    packed rows, and whether it merges.
    """
    from peftctl.methods import METHODS

    found = {}
    for name in METHODS if names is None else names:
        cell = _cell(METHODS[name], task_of("causal_lm"), seed, {**SIZES, **sizes})
        on = {family: cell(family=family, merge=True) for family in FAMILIES}
        families = {family: verdict for family, (verdict, _) in on.items()}
        home = next((family for family, verdict in families.items() if verdict == YES), next(iter(FAMILIES)))
        others = {task: _of_task(METHODS[name], task, seed, {**SIZES, **sizes}) for task in FAMILY_OF}
        found[name] = {
            "tasks": {"causal_lm": families[home], **others},
            "families": families,
            "quantization": {str(bits): cell(family=home, bits=bits)[0] for bits in BITS},
            "bfloat16": cell(family=home, dtype="bfloat16")[0],
            "checkpointing": cell(family=home, checkpointing=True)[0],
            "packing": cell(family=home, packing=True)[0],
            "merges": next(
                (merged for verdict, merged in on.values() if verdict == YES and merged != YES), on[home][1]
            ),
        }
    return found


def _of_task(method: Any, task: str, seed: int, sizes: dict[str, Any]) -> Verdict:
    """Whether the method works for the task on its own family, or else on the first of all families, where transformers
    has that."""
    cell, own = _cell(method, task_of(task), seed, sizes), FAMILY_OF[task]
    found = cell(family=own)[0]
    other = next(iter(FAMILIES))
    return YES if found != YES and own in ENCODERS and cell(family=other)[0] == YES else found


def _cell(method: Any, task: Any, seed: int, sizes: dict[str, Any]) -> Callable[..., tuple[Verdict, Verdict]]:
    """A function that tries the method with some changes: whether it works, and whether it merges."""

    def run(**changes: Any) -> tuple[Verdict, Verdict]:
        try:
            try:
                _try(method, task, seed, sizes, **changes)
            except NotFalling:  # so high a rate can be too high for weights of the model's own
                _try(method, task, seed, sizes, **changes, rate=QUICK / 10)
        except NotMerged as error:
            return YES, str(error)
        except Exception as error:
            return _reason(error), _reason(error)
        return YES, YES

    return run


def _reason(error: Exception) -> Verdict:
    """The first line of what was raised; whose it is, where it is not a message of ours."""
    from peftctl.errors import PeftctlError

    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if not isinstance(error, PeftctlError):
        text = f"{type(error).__name__}: {text}"
    return text.removeprefix("method: ")[:200]


def _try(  # noqa: PLR0913 - what a cell is
    method: Any,
    task: Any,
    seed: int,
    sizes: dict[str, Any],
    *,
    family: str = "llama",
    bits: int = 0,
    dtype: str = "float32",
    checkpointing: bool = False,
    packing: bool = False,
    merge: bool = False,
    rate: float | None = None,
) -> None:
    import torch

    from peftctl.errors import UsageError
    from peftctl.fast.equal import tolerance
    from peftctl.methods import BaseName, DataFacts
    from peftctl.model import adapter, attach, targets
    from peftctl.model.profile import profile

    with tempfile.TemporaryDirectory() as folder:
        base = _base(task, family, sizes, bits, seed).requires_grad_(False).eval()
        if dtype != "float32":
            base = base.to(getattr(torch, dtype))
        written = SETTINGS.get(method.name, {})
        settings = method.resolve(method.settings(**(written(base, Path(folder)) if callable(written) else written)))
        wanted = method.choose(base) if settings.wanted is None else settings.wanted
        matched = targets.resolve(base, wanted, method.targetable(base))
        anatomy = attach.anatomy(base, matched, method.beside(base, settings))
        torch.manual_seed(seed)
        model = attach.attach(base, method, settings, anatomy, task.peft_type, DataFacts(8, 64, 32, LENGTH, STEPS))
        if packing:
            known = profile(model, task, True, getattr(torch, dtype), method.virtual_tokens(settings))
            if not known.packs:
                raise UsageError(known.why_not)
            return
        if checkpointing:
            reentrant = {"use_reentrant": False}
            model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs=reentrant)
        batch = _batch(task, sizes["vocab_size"], method.virtual_tokens(settings))
        inputs = batch["inputs"]
        _train(method, settings, model, task, batch, rate or max(method.learning_rate, QUICK))
        method.finish(model)
        trained = adapter.outputs(task, model, inputs)
        saved = Path(folder) / "saved"
        saved.mkdir()
        method.save(model, settings, BaseName("base", None), saved)
        attach.save_heads(model, saved)
        read = adapter.reload(model, method, settings, saved)
        depth = sizes["num_hidden_layers"] ** 0.5
        rounding = depth * tolerance(getattr(torch, dtype)) if method.rounds(settings) else adapter.EPS
        adapter.compare(trained, adapter.outputs(task, read, inputs), rounding)
        if task.generates:
            read.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=2,
                do_sample=False,
            )
        if merge:
            _merge(read, task, inputs, trained)


def _merge(model: Any, task: Any, inputs: Any, trained: Any) -> None:
    from peftctl.model import adapter

    if not hasattr(model, "merge_and_unload"):
        raise NotMerged("it changes no weight, so there is nothing to merge")
    try:
        merged = model.merge_and_unload()
    except Exception as error:
        raise NotMerged(_reason(error)) from error
    difference = float((adapter.outputs(task, merged, inputs) - trained).abs().max())
    if difference > 1e-4 * float(trained.abs().max()):
        raise NotMerged(f"merging changes the logits by {difference:.2g}")


def _base(task: Any, family: str, sizes: dict[str, Any], bits: int, seed: int) -> Any:
    import torch
    from transformers import AutoConfig

    from peftctl.methods.parts import mark_heads, mark_unused
    from peftctl.model import quantize
    from peftctl.recipe.schema import QuantizationSettings

    own = {**FAMILIES, **READERS}[family]
    chosen = {name: value for name, value in {**sizes, **own}.items() if value is not None}
    config = AutoConfig.for_model(family, **chosen)
    task.configure(config)
    torch.manual_seed(seed)
    model = task.model_class(config).from_config(config)
    mark_unused(model, task.unused)
    if task.head:
        mark_heads(model)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # as trained models have them: some methods multiply by them
            torch.nn.init.normal_(parameter, std=0.02)
    if not bits:
        return model
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        settings = quantize.config(QuantizationSettings(bits=bits), "float32")
        model = task.model_class().from_pretrained(folder, quantization_config=settings)
    quantize.keep_weights(model)
    return model


def task_of(name: str) -> Any:
    """The task, with a few labels where it needs some."""
    from peftctl.recipe.task_settings import TaskSettings
    from peftctl.tasks import TASKS, task_of

    settings = TaskSettings(name=name, **({"labels": LABELS} if "labels" in TASKS[name].uses else {}))
    return task_of(settings)


def _batch(task: Any, vocabulary: int, virtual: int) -> Any:
    """Two rows of random tokens and of whatever the task learns of them, as the task's own batch."""
    import torch

    from peftctl.tasks import Layout, tensors
    from peftctl.text.tokens import Encoded

    half = LENGTH // 2
    # What stands for a row's parts and its labels: by the kinds of example that the tasks take.
    kinds: dict[str, tuple[list[tuple[float, ...]], tuple[int, ...]]] = {
        "Segments": ([(), ()], ()),
        "Labelled": ([(0.0,), (2.0,)], ()),
        "Tagged": ([tuple(float(at % 3) for at in range(LENGTH)), (1.0,) * LENGTH], ()),
        "Span": ([(6.0, 8.0), (5.0, 5.0)], (4, 1, *range(LENGTH - 5), *range(1, LENGTH - 4))),
        "Triple": ([(1.0,), (1.0,)], (half, LENGTH - half)),
        "Pair": ([(), ()], (half, LENGTH - half)),
    }
    labels, parts = next(made for name, made in kinds.items() if name in {kind.__name__ for kind in task.accepts})
    weights = (0.0,) * (half if parts else 0) + (1.0,) * (LENGTH - (half if parts else 0))
    ids = torch.randint(3, vocabulary, (2, LENGTH)).tolist()
    rows = [Encoded(tuple(row), weights, said, parts) for row, said in zip(ids, labels, strict=True)]
    return tensors({**task.collate(rows, Layout(0, slices_logits=False, virtual=virtual)), "head": None})


def _train(method: Any, settings: Any, model: Any, task: Any, batch: Any, rate: float) -> None:
    """Some updates on one batch. Raises NotFalling where the loss is not lower, ValueError where a tensor gets no
    gradient."""
    import torch

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        [{"params": [p], "lr": rate * method.rate(settings, name)} for name, p in trained.items()]
    )
    silent = set(trained)
    before = _measured(model, task, batch)
    model.train()
    for step in range(STEPS):
        loss = _loss(model, task, batch)
        (loss + method.penalty(model) if method.penalty else loss).backward()
        silent -= {name for name in silent if trained[name].grad is not None and bool(trained[name].grad.any())}
        optimizer.step()
        if method.after_update:
            method.after_update(model, step)
        optimizer.zero_grad()
    after = _measured(model, task, batch)
    if silent:
        raise ValueError(f"{len(silent)} tensors get no gradient, {min(silent)} among them")
    if not after < before:
        raise NotFalling(f"the loss does not fall ({before:.4f} to {after:.4f})")


def _measured(model: Any, task: Any, batch: Any) -> float:
    """The loss without dropout, beside which what some steps change is little."""
    import torch

    model.eval()
    with torch.no_grad():
        return float(_loss(model, task, batch))


def _loss(model: Any, task: Any, batch: Any) -> Any:
    from peftctl.objectives import OBJECTIVES

    loss = OBJECTIVES[task.objective].step(model, batch)
    return loss.sum / loss.count
