"""From recipe to published adapter, in the order in which things can fail: data before weights, checks before use."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peftctl.atomic import write_json, write_text
from peftctl.data.collate import Collator, plain_layout
from peftctl.data.encode import Rows
from peftctl.data.order import derived_seed
from peftctl.data.prepare import Opened, open_rows
from peftctl.data.supply import supplied
from peftctl.errors import DivergedError, MachineError, UsageError
from peftctl.evaluation.measure import measured
from peftctl.events import Events, MetricsLog
from peftctl.methods import METHODS, Anatomy, DataFacts
from peftctl.model import attach, causal, identity, load, memory, preflight, prequantized, targets
from peftctl.model import start as begin
from peftctl.model.fast import FastPaths, compile_pays
from peftctl.model.locate import Base
from peftctl.model.profile import profile
from peftctl.objectives import OBJECTIVES, Objective
from peftctl.recipe import able, resolve
from peftctl.recipe.schema import Recipe
from peftctl.tasks import Task
from peftctl.train import checkpoint, distributed, kept, loop, resume, rundir, trackers
from peftctl.train.checkpoint import Checkpoint
from peftctl.train.optim import build_optimizer, in_order, training_bytes
from peftctl.train.publish import publish
from peftctl.train.resume import Beginning
from peftctl.train.saver import Saver, check_room
from peftctl.train.session import Session
from peftctl.train.stops import Stops

# What of the seed draws the numbers that an adapter, or a new head, begins with.
ADAPTER_START, HEAD_START = 0, 1
SHOWN = 12  # labels


def train(recipe: Recipe, recipe_text: str, events: Events, how: str = resume.AUTO) -> Path:
    """Run the recipe and leave its run directory. Raises PeftctlError; then nothing was published.

    ``how``: go on from the newest checkpoint that an earlier try has left (auto), never, or from the checkpoint or run
    in that folder. Launched in several processes, each trains its share of every step; the first one alone writes and
    reports.
    """
    began = time.monotonic()
    recipe = resolve.resolve(recipe)
    run = Path(recipe.output).expanduser().absolute()
    trackers.check(recipe.track.to)
    stops = Stops(recipe.train.max_time, began)
    accelerator = distributed.accelerator(recipe.track.to, run)
    distributed.check(recipe, accelerator)
    with stops.heeded(), distributed.deterministic(recipe.train.deterministic):
        if not accelerator.is_main_process:
            _train_beside(recipe, accelerator, run, stops)
            return run
        with rundir.claim(run):
            beginning = resume.begin(run, recipe, how, lambda text: events.emit("warning", message=text))
            distributed.tell(accelerator, beginning)
            if beginning.way == "done":
                steps = json.loads((run / rundir.MANIFEST).read_text("utf-8"))["steps"]
                events.emit("warning", message=f"{run} is finished: there is nothing to do")
                events.emit("done", path=str(run), steps=steps, skipped=0, seconds=0.0)
                return run
            _train(recipe, recipe_text, events, accelerator, run, stops, beginning, began)
    return run


def _train_beside(recipe: Recipe, accelerator: Any, run: Path, stops: Stops) -> None:
    """The part of a process that is not the first of several."""
    beginning = distributed.tell(accelerator, None)
    if beginning.way == "done":
        return
    at = beginning.path
    session = prepare(resume.recipe_at(at, recipe) if at else recipe, accelerator, Events())[0]
    found = checkpoint.read(at) if at else None
    if found:
        kept.restore(session, found)
    with session.fast.on(accelerator.unwrap_model(session.model)):
        loop.run(session, Events(), Saver(session, run, Events(), dict, at), stops, found)
    accelerator.wait_for_everyone()


def _train(  # noqa: PLR0913 - what a run is made of
    recipe: Recipe,
    recipe_text: str,
    events: Events,
    accelerator: Any,
    run: Path,
    stops: Stops,
    beginning: Beginning,
    began: float,
) -> None:
    asked, at = resume.asked(recipe), beginning.path
    found = checkpoint.read(at) if at else None
    if at and found:
        recipe = resume.recipe_at(at, recipe)
        stops.hint = f"the same command goes on from {at}"
    log = MetricsLog(run / rundir.LOG)
    events.add(log)
    try:
        if not at:
            write_text(run / "recipe.yaml", recipe_text)
        session, base, anatomy = prepare(recipe, accelerator, events)
        saver_needs = {"asked": asked, "environment": rundir.environment()}
        check_room(run, session.recipe, attach.trainable(session.model))
        if at and found:
            _go_on(session, base, at, found, saver_needs["environment"], events)
            # Only now: what comes to nothing takes nothing away.
            resume.set_aside(run, at, lambda text: events.emit("warning", message=text))
            rundir.cut_log(run, found.state["log_bytes"] if at.parent == run / checkpoint.FOLDER else 0)
        log.begin()
        write_text(run / "recipe.yaml", recipe_text)
        write_text(run / rundir.RESOLVED, kept.resolved(session))
        write_json(run / "environment.json", saver_needs["environment"])
    except BaseException:
        if not checkpoint.all_of(run):
            rundir.clear(run)
        raise
    stops.hint = "every step is made: the same command publishes what was trained"
    before = float(found.state["seconds"]) if found else 0.0

    def beside() -> dict[str, Any]:
        return {
            **saver_needs,
            "base": identity.identity(base),
            "log_bytes": (run / rundir.LOG).stat().st_size,
            "seconds": before + time.monotonic() - began,
        }

    saver = Saver(session, run, events, beside, at)
    if session.recipe.track.to:
        events.add(trackers.track(accelerator, session.recipe, run))
    left = session.supply.steps - session.step
    events.emit("stage", name="train", detail=f"{left} step{'s' if left != 1 else ''}")
    with session.fast.on(accelerator.unwrap_model(session.model)) as put_in:
        events.emit("fast", **put_in)
        try:
            loop.run(session, events, saver, stops, found)
        except (DivergedError, MachineError) as error:
            if saver.last and str(saver.last) not in str(error):
                error.hint = f"{error.hint}; the last checkpoint before is {saver.last}".removeprefix("; ")
            raise
    accelerator.wait_for_everyone()
    write_text(run / rundir.RESOLVED, kept.resolved(session))  # memory may have changed it
    publish(session, base, anatomy, run, events, asked)
    seconds = round(before + time.monotonic() - began, 1)
    events.emit("done", path=str(run), steps=session.step, skipped=session.skipped, seconds=seconds)


def _go_on(
    session: Session, base: Base, at: Path, found: Checkpoint, environment: Mapping[str, Any], events: Events
) -> None:
    """Put the checkpoint into the session that was made of its recipe. Raises UsageError where that is not the same
    base, or the run was to be shorter than it is already."""
    identity.check(base, found.state["base"])
    if found.step > session.supply.steps:
        raise UsageError(
            f"train: the run is to have {session.supply.steps} steps, and {at} is after step {found.step}",
            "a longer run goes on from there; --resume PATH takes an earlier checkpoint",
        )
    then = found.state["environment"]
    if changed := sorted(rundir.differences(then, environment)):
        events.emit("warning", message=f"the bits may be others than without the stop: {'; '.join(changed)}")
    if session.supply.steps != found.state["steps"]:
        message = (
            f"the run was to have {found.state['steps']} steps, and now has {session.supply.steps}: from here on the"
        )
        events.emit("warning", message=f"{message} learning rate follows the new length")
    kept.restore(session, found)
    if session.supply.steps != found.state["steps"]:
        session.lengthened.append([session.step, found.state["steps"]])
    events.emit("resumed", step=session.step, path=str(at))


def prepare(recipe: Recipe, accelerator: Any, events: Events) -> tuple[Session, Base, Anatomy]:
    """Everything up to the first step. Returns the session, the base and what the method's formula knows of it."""
    import torch

    def warn(text: str) -> None:
        events.emit("warning", message=text)

    able.judge(recipe)
    method = METHODS[recipe.method.name]
    events.emit("stage", name="data", detail=", ".join(str(source.path) for source in recipe.data.train))
    opened = open_rows(recipe, warn)
    recipe, base, encoding = opened.recipe, opened.base, opened.encoding
    task = encoding.task
    _tell_task(events, recipe, task)
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

    objective = _objective(task, accelerator)

    events.emit("stage", name="model", detail=base.name)
    torch.manual_seed(derived_seed(recipe.train.seed, HEAD_START))
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
        recompute(model.get_base_model(), recipe.train.offload_activations, accelerator.device)
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
    longest = _longest(opened, counts["longest"], held_out)
    known = profile(accelerator.unwrap_model(model), task, slices_logits, products, virtual, longest=longest)
    causal.check(base.name, accelerator.unwrap_model(model).get_base_model(), task, known.looks_ahead)
    fast = FastPaths(recipe.train.fast, known, method)
    trained = ((name, p) for name, p in accelerator.unwrap_model(model).named_parameters() if p.requires_grad)
    optimizer = build_optimizer(recipe.train, ((method.rate(recipe.method, name), p) for name, p in trained))
    tokens, tokenizer = recipe.train.micro_batch_tokens or 0, encoding.tokenizer
    collate = Collator(task, tokenizer, fast.layout(plain_layout(tokenizer)), tokens, accelerator.device)
    measure = measured(recipe.eval, held_out, collate, encoding.max_length) if held_out else None
    if measure:
        measure.check()
    session = Session(
        recipe=recipe,
        task=task,
        method=method,
        objective=objective,
        accelerator=accelerator,
        model=model,
        optimizer=optimizer,
        trained=in_order(optimizer, accelerator.unwrap_model(model)),
        fast=fast,
        collate=collate,
        supply=supply,
        measure=measure,
        start=start,
    )
    return session, base, anatomy


def _longest(opened: Opened, of_training: int, held_out: Rows | None) -> int:
    """How many tokens the longest row has that the model will see. What is not known before is as long as allowed."""
    if opened.recipe.data.streaming or opened.recipe.eval.choices:
        return opened.encoding.max_length
    return max(of_training, held_out.longest if held_out else 0)


def _tell_task(events: Events, recipe: Recipe, task: Task) -> None:
    """What the recipe or the rows say of the task, where something is said of it."""
    known = {name: getattr(recipe.task, name) for name in task.uses}
    said = []
    for name, value in known.items():
        if isinstance(value, tuple | list):
            said.append(f"{name} {', '.join(value[:SHOWN])}" + (", ..." if len(value) > SHOWN else ""))
        elif value is not None:
            said.append(f"{name} {value}")
    if said:
        events.emit("stage", name="task", detail="; ".join([task.name, *said]))


def _objective(task: Task, accelerator: Any) -> Objective:
    """What the task lowers. Raises UsageError where several processes cannot."""
    objective = OBJECTIVES[task.objective]
    if not objective.splittable and accelerator.num_processes > 1:
        raise UsageError(
            f"task.name: {task.name} compares all rows of a step with each other, which several processes do not see",
            "start it in one process",
        )
    return objective


def recompute(model: Any, offload: bool, device: Any) -> None:
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
