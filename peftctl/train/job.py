"""From recipe to published adapter, in the order in which things can fail: data before weights, checks before use."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftctl.atomic import inventory, publish_directory, sha256, write_json, write_text
from peftctl.data.collate import Collator, pad_id
from peftctl.data.order import derived_seed
from peftctl.data.prepare import open_rows
from peftctl.data.supply import supplied
from peftctl.errors import MachineError, UsageError
from peftctl.evaluation.measure import Measurement
from peftctl.events import Events, metrics_log
from peftctl.methods import METHODS, Anatomy, DataFacts
from peftctl.model import adapter, attach, causal, identity, load, memory, preflight, prequantized, targets
from peftctl.model import start as begin
from peftctl.model.fast import FastPaths, compile_pays
from peftctl.model.locate import Base
from peftctl.model.profile import profile
from peftctl.objectives import OBJECTIVES
from peftctl.recipe import able, dump_resolved, resolve
from peftctl.recipe.schema import Recipe
from peftctl.tasks import TASKS, Layout
from peftctl.train import distributed, loop, rundir, trackers
from peftctl.train.optim import build_optimizer, training_bytes
from peftctl.train.session import Session

ADAPTER_START = 0
PROBE_ROWS = 2
MANIFEST_VERSION = 1
RESOLVED_FILE = "resolved.yaml"
RESOLVED = "Every choice made. Training this recipe gives the same bits."


def train(recipe: Recipe, recipe_text: str, events: Events) -> Path:
    """Run the recipe and leave its run directory. Raises PeftctlError; then nothing was published.

    Launched in several processes, each trains its share of every step; the first one alone writes and reports.
    """
    started = time.time()
    recipe = resolve.resolve(recipe)
    run = Path(recipe.output).expanduser().absolute()
    trackers.check(recipe.track.to)
    accelerator = distributed.accelerator(recipe.track.to, run)
    if not accelerator.is_main_process:
        session = prepare(recipe, accelerator, Events())[0]
        with session.fast.on(accelerator.unwrap_model(session.model)):
            loop.run(session, Events())
        accelerator.wait_for_everyone()
        return run
    with rundir.claim(run, lambda text: events.emit("warning", message=text)):
        try:
            events.add(metrics_log(run / "metrics.jsonl"))
            write_text(run / "recipe.yaml", recipe_text)
            session, base, anatomy = prepare(recipe, accelerator, events)
            write_text(run / RESOLVED_FILE, dump_resolved(session.recipe, RESOLVED))
            write_json(run / "environment.json", rundir.environment())
        except BaseException:
            rundir.clear(run)
            raise

        if recipe.track.to:
            events.add(trackers.track(accelerator, session.recipe, run))
        events.emit(
            "stage", name="train", detail=f"{session.supply.steps} step{'s' if session.supply.steps > 1 else ''}"
        )
        with session.fast.on(accelerator.unwrap_model(session.model)) as put_in:
            events.emit("fast", **put_in)
            loop.run(session, events)
        accelerator.wait_for_everyone()
        write_text(run / RESOLVED_FILE, dump_resolved(session.recipe, RESOLVED))  # memory may have changed it

        events.emit("stage", name="publish", detail=str(run / session.method.artifact))
        facts = manifest(session, base, anatomy, publish(session, base, run), run)
        write_json(run / "manifest.json", facts)  # before measuring: an evaluation that fails loses no run
        if session.measure:
            events.emit("stage", name="evaluate", detail=f"{len(session.measure.rows)} held-out rows")
            with session.fast.on(session.model):
                facts["metrics"] = session.measure(session.model)
            events.emit("eval", step=session.step, **facts["metrics"])
            write_json(run / "manifest.json", facts)
        seconds = round(time.time() - started, 1)
        events.emit("done", path=str(run), steps=session.step, skipped=session.skipped, seconds=seconds)
    return run


def prepare(recipe: Recipe, accelerator: Any, events: Events) -> tuple[Session, Base, Anatomy]:
    """Everything up to the first step. Returns the session, the base and what the method's formula knows of it."""
    import torch

    def warn(text: str) -> None:
        events.emit("warning", message=text)

    able.judge(recipe)
    task, method = TASKS[recipe.task.name], METHODS[recipe.method.name]
    events.emit("stage", name="data", detail=", ".join(str(source.path) for source in recipe.data.train))
    opened = open_rows(recipe, warn)
    recipe, base, encoding = opened.recipe, opened.base, opened.encoding
    identity.check_whole(base.folder)
    init_from = recipe.train.init_from
    start = begin.find(recipe.path(init_from), base, method, warn) if init_from else None
    for folder in method.built_on(recipe.method):
        begin.check_base("method", Path(folder), base, warn)
    recipe = resolve.resolve_machine(recipe, dtype=load.choose_dtype(recipe.model.dtype))
    able.judge(recipe, opened.config.model_type)  # what it is asked for is all known now
    prequantized.check(opened.config, base.name, recipe.model, method, recipe.method, warn)
    preflight.check(base.name, opened.config, task, method, recipe.method, warn)
    supply, held_out = supplied(opened, warn)
    counts = supply.known()
    formats = sorted({source.format for source in recipe.data.train})
    events.emit("data", source="train", formats=formats, cached=supply.cached, **counts)
    if held_out:
        events.emit("data", source="eval", cached=supply.cached, **held_out.facts())
    tokens = counts["tokens"] * supply.steps * recipe.train.batch_size // counts["rows"]
    recipe = resolve.resolve_compile(recipe, compile_pays(accelerator.device, tokens))
    facts = DataFacts(counts["rows"], counts["tokens"], counts["supervised_tokens"], counts["longest"], supply.steps)
    if recipe.eval.every and recipe.eval.every >= supply.steps:
        raise UsageError(
            f"eval.every: has no effect in a run of {supply.steps} steps (found {recipe.eval.every})",
            "the end of training is always measured",
        )

    events.emit("stage", name="model", detail=base.name)
    model = load.load_model(base, recipe.model, task, recipe.model.dtype, warn)
    matched = targets.of(model, method, recipe.method)
    if matched:
        recipe = resolve.resolve_targets(recipe, matched)
    anatomy = attach.anatomy(model, matched, method.beside(model, recipe.method))
    slices_logits = load.forward_takes(model, "logits_to_keep")
    torch.manual_seed(derived_seed(recipe.train.seed, ADAPTER_START))
    without, parameters = attach.weight_bytes(model), attach.total(model)
    model = attach.attach(model, method, recipe.method, anatomy, task.peft_type, facts)
    if recipe.train.micro_batch_tokens is None:
        weights = prequantized.weight_bytes(opened.config, base.folder, recipe.model.dtype)
        held = weights + attach.weight_bytes(model) - without + training_bytes(recipe.train, attach.trainable(model))
        checkpointing = recipe.train.gradient_checkpointing
        fitting = memory.micro_batch_tokens(opened.config, held, accelerator.device, checkpointing)
        recipe = resolve.resolve_memory(recipe, micro_batch_tokens=fitting)
    if start:
        method.start_from(model, recipe.method, start.folder)
    if recipe.train.gradient_checkpointing:
        checkpoint(model.get_base_model(), recipe.train.offload_activations, accelerator.device)
    events.emit(
        "model",
        parameters=parameters,
        trainable=attach.trainable(model),
        dtype=recipe.model.dtype,
        device=str(accelerator.device),
        targets=list(matched),
        beside={name: list(shape) for name, shape in anatomy.beside.items()},
    )
    model = to_device(model, accelerator)
    virtual = method.virtual_tokens(recipe.method)
    products = getattr(torch, recipe.model.dtype)
    known = profile(accelerator.unwrap_model(model), task, slices_logits, products, virtual)
    causal.check(base.name, accelerator.unwrap_model(model).get_base_model(), task, known.looks_ahead)
    fast = FastPaths(recipe.train.fast, known, method)
    trained = ((name, p) for name, p in accelerator.unwrap_model(model).named_parameters() if p.requires_grad)
    optimizer = build_optimizer(recipe.train, ((method.rate(recipe.method, name), p) for name, p in trained))
    tokens, tokenizer = recipe.train.micro_batch_tokens or 0, encoding.tokenizer
    collate = Collator(task, tokenizer, fast.layout(pad_id(tokenizer)), tokens, accelerator.device)
    longest = encoding.max_length
    measure = Measurement(held_out, collate, longest, recipe.eval.choices or ()) if held_out else None
    if measure:
        measure.check()
    session = Session(
        recipe=recipe,
        task=task,
        method=method,
        objective=OBJECTIVES[task.objective],
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        fast=fast,
        collate=collate,
        supply=supply,
        measure=measure,
        start=start,
    )
    return session, base, anatomy


def checkpoint(model: Any, offload: bool, device: Any) -> None:
    """Keep a layer's inputs alone for the backward pass, in host memory where they are to be offloaded.

    Raises UsageError where there is nothing to offload from, or the model cannot be checkpointed.
    """
    if offload and device.type == "cpu":
        raise UsageError("train.offload_activations: has no effect on a CPU, whose memory they are in already")
    if not model.supports_gradient_checkpointing:
        raise UsageError(f"train.gradient_checkpointing: {type(model).__name__} does not support it")
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False}, offload=offload)
    # Beside an adapter transformers then sends gradients down to the embeddings; none need go below the lowest adapter.
    model.disable_input_require_grads()


def to_device(model: Any, accelerator: Any) -> Any:
    """The model where Accelerate wants it. Raises MachineError where it does not fit."""
    import torch

    # Beside a 16-bit model float32 products need not be more exact than TF32, which is more exact than the model.
    if accelerator.device.type == "cuda" and next(model.parameters()).dtype == torch.bfloat16:
        torch.set_float32_matmul_precision("high")
    try:
        return accelerator.prepare_model(model)
    except torch.OutOfMemoryError as error:
        raise MachineError(f"the model does not fit on {accelerator.device}") from error


def publish(session: Session, base: Base, run: Path) -> dict[str, float]:
    """What was trained in ``run``, by rename, after what was saved has given the trained model's logits.

    From here on the session's model is the base with the adapter read back from disk.
    """
    import torch

    from peftctl.fast.equal import tolerance

    model, tokenizer = session.accelerator.unwrap_model(session.model), session.collate.tokenizer
    collate = replace(session.collate, layout=Layout(pad_id(tokenizer)))
    # Row by row: vectors that a network makes for several rows differ, by rounding, from those it makes to be saved.
    inputs = [collate([row])["inputs"] for row in session.supply.shortest(PROBE_ROWS)]
    method, settings = session.method, session.recipe.method
    method.finish(model)
    trained = _logits(model, inputs)
    dtype, layers = getattr(torch, session.recipe.model.dtype), model.config.get_text_config().num_hidden_layers
    rounding = tolerance(dtype) * layers**0.5 if method.rounds(settings) else adapter.EPS
    with publish_directory(run / method.artifact) as aside:
        adapter.save(model, method, settings, session.task, tokenizer, base, aside, loaded=session.recipe.model)
        session.model = adapter.reload(model, method, settings, aside)
        verified = adapter.compare(trained, _logits(session.model, inputs), rounding)
    return verified


def _logits(model: Any, inputs: Sequence[Mapping[str, Any]]) -> Any:
    """Every logit of every row, end to end."""
    import torch

    return torch.cat([adapter.logits(model, each).flatten() for each in inputs])


def manifest(
    session: Session,
    base: Base,
    anatomy: Anatomy,
    verified: dict[str, float],
    run: Path,
) -> dict[str, Any]:
    """What the run was, what it left, and how that was checked."""
    recipe, artifact = session.recipe, session.method.artifact
    held_out = [recipe.data.eval] if recipe.data.eval and recipe.data.eval.path else []
    pinned = [*recipe.data.train, *held_out]
    return {
        "manifest": MANIFEST_VERSION,
        "kind": "run",
        "artifact": artifact,
        "task": recipe.task.name,
        "method": recipe.method.model_dump(mode="json", exclude={"targets"}),
        "loads_with": session.method.loads_with(recipe.method),
        "base": identity.identity(base),
        "dtype": recipe.model.dtype,
        "quantization": recipe.model.quantization.model_dump(mode="json") if recipe.model.quantization else None,
        "targets": list(anatomy.targets),
        "init_from": session.start.facts() if session.start else None,
        "trainable_parameters": session.method.parameters(recipe.method, anatomy),
        "data": {
            "files": {source.path: source.sha256 for source in pinned if source.sha256},
            "hub": {source.path: source.revision for source in pinned if source.revision},
            "train": session.supply.facts(),
            "eval": session.measure.rows.facts() if session.measure else None,
        },
        "steps": session.step,
        "skipped_updates": session.skipped,
        "losses": {"first": session.losses[0], "last": session.losses[-1]},
        "metrics": {},
        "verified": {"reload": {"verified": "yes", **verified}},
        "files": {
            "resolved.yaml": {
                "size_bytes": (run / RESOLVED_FILE).stat().st_size,
                "sha256": sha256(run / RESOLVED_FILE),
            },
            **{f"{artifact}/{name}": entry for name, entry in inventory(run / artifact).items()},
        },
    }
