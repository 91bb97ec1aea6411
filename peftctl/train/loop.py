"""The training loop, top to bottom. Its state is the Session; what it has to say goes out as events.

Nothing in it waits for the device but logging and evaluating: losses stay there until then, and whether an update's
numbers are finite is decided there too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

from peftctl.data.order import derived_seed
from peftctl.errors import MachineError, StoppedError
from peftctl.events import Events
from peftctl.train.checkpoint import Checkpoint
from peftctl.train.feed import Feed, Work
from peftctl.train.guards import GradientGuard, SkipGuard
from peftctl.train.memory import peak_memory_bytes
from peftctl.train.optim import schedule, set_rate, update
from peftctl.train.saver import Saver
from peftctl.train.session import Session
from peftctl.train.stops import Stops

DROPOUT = 1
LEAST_TOKENS = 8


def run(session: Session, events: Events, saver: Saver, stops: Stops, found: Checkpoint | None = None) -> None:
    """Train from ``session.step`` to the plan's end; ``found``: the checkpoint that the session was restored from.

    Raises DivergedError where it makes no sense to go on, StoppedError where something has stopped it, once that is
    saved.
    """
    import torch

    train, accelerator, steps, start = session.recipe.train, session.accelerator, session.supply.steps, session.step
    rate = schedule(train.schedule, train.warmup_ratio, steps)
    gradients = GradientGuard(session.model.named_parameters(), steps)
    trained = list(session.trained.values())
    window = _Window(session, SkipGuard(), events)
    # Where a layer may be left out by chance, one without a gradient is no sign of anything.
    watched = not session.method.leaves_out(session.recipe.method)
    if found is not None:
        gradients.restore(found.state["guards"]["gradients"])
        window.restore(found)

    with Feed(partial(_work, session), steps) as feed, stops.noted():
        while True:
            best = _measure(session, stops, events)
            stop = _agreed(session, stops, moved=session.step > start)
            if best or stop or saver.due or session.step == steps:
                saver.save(*window.kept(gradients))
            if stop:
                accelerator.wait_for_everyone()
                raise _stopped(session, stops, saver, stop)
            if session.step == steps:
                break

            step = session.step
            work = feed.take(step)
            # What is left to chance is a function of (seed, step, rank): measuring in between, or resuming, changes
            # nothing.
            seed_everything(derived_seed(train.seed, DROPOUT, step, accelerator.process_index))
            session.model.train()
            try:
                loss, by_row = _backward(session, work)
            except torch.OutOfMemoryError as error:
                _halve(session, work, error, events)
                feed.forget()
                continue

            norm = torch.nn.utils.clip_grad_norm_(trained, train.max_grad_norm)
            finite = torch.isfinite(loss) & torch.isfinite(norm)
            if watched and gradients.watching and finite:
                gradients.after_backward()
            learning_rate = (train.learning_rate or 0.0) * rate(step)
            set_rate(session.optimizer, learning_rate)
            update(session.optimizer, finite)
            if session.method.after_update and finite:
                session.method.after_update(session.model, step)
            session.optimizer.zero_grad(set_to_none=True)
            session.step += 1

            window.add(loss, norm, work)
            _say_rows(session.step, by_row, events)
            if session.step % train.log_every == 0 or session.step == steps:
                window.emit(learning_rate)


def _say_rows(step: int, by_row: dict[int, Any], events: Events) -> None:
    """The loss of every row of the step, in the step's order, where they were wanted."""
    if by_row:
        losses = [float(by_row[place]) for place in sorted(by_row)]
        events.emit("rows", step=step, losses=[round(each, 6) if math.isfinite(each) else None for each in losses])


def seed_everything(seed: int) -> None:
    """Seed every stream of random numbers that something in a model might draw from."""
    import random

    import numpy as np
    import torch

    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _measure(session: Session, stops: Stops, events: Events) -> bool:
    """Measure on the held-out rows where that is due at this step and was not done. Returns whether it was the best.

    What stops the run stops measuring too: it comes again when the run goes on.
    """
    settings, step, steps = session.recipe.eval, session.step, session.supply.steps
    due = settings.every and step and (step % settings.every == 0 if step < steps else settings.best)
    if not (session.measure and due) or (session.evaluations and session.evaluations[-1]["step"] == step):
        return False
    try:
        with stops.at_once():
            metrics = session.measure(session.model)
    except StoppedError:
        return False
    session.evaluations.append({"step": step, **metrics})
    events.emit("eval", step=step, **metrics)
    loss = metrics["loss"]
    if not settings.best or loss is None or (session.best and session.best["loss"] <= loss):
        return False
    session.best = {"step": step, "loss": loss}
    return True


def _agreed(session: Session, stops: Stops, *, moved: bool) -> str:
    """Why all processes are to stop after this step, or "".

    One of several is stopped by what another has heard, of which they tell each other where they wait for their
    devices anyway.
    """
    import torch

    accelerator = session.accelerator
    if accelerator.num_processes == 1:
        return stops.asked(moved=moved)
    if session.step % session.recipe.train.log_every and session.step != session.supply.steps:
        return ""
    why = stops.asked(moved=moved)
    heard = torch.tensor(float(bool(why)), device=accelerator.device)
    return (why or "another process's signal") if accelerator.reduce(heard, "sum") else ""


def _stopped(session: Session, stops: Stops, saver: Saver, why: str) -> StoppedError:
    if session.step == 0:
        return stops.error(f"stopped by {why} before the first step: nothing was saved", "the same command begins anew")
    where = f"saved in {saver.last}" if saver.last else "saved by the first process"
    return stops.error(f"stopped by {why} after step {session.step} of {session.supply.steps}: {where}")


def _work(session: Session, step: int) -> Work:
    """The rows of ``step`` that are this process's, as micro-batches."""
    rank, ranks = session.accelerator.process_index, session.accelerator.num_processes
    rows = session.supply.rows(step)
    # The count is known before any forward pass, so each micro-batch is divided by the whole step's.
    count = sum(session.objective.count(row) for row in rows)
    places = sorted(range(len(rows)), key=lambda place: len(rows[place]))[rank::ranks]
    share = ranks / count if places else 0.0
    places = places or [0]
    mine = session.collate.groups([rows[at] for at in places], split=session.objective.splittable)
    grouped = [[places[index] for index in group] for group in mine]
    groups = [[rows[place] for place in group] for group in grouped]
    return Work(
        batches=[session.collate.on_host(group) for group in groups],
        count=count,
        share=share,
        tokens=sum(len(row) for row in rows),
        supervised=sum(row.supervised for row in rows),
        longest=max(sum(len(row) for row in group) for group in groups),
        most_rows=max(len(group) for group in groups),
        rows=grouped,
    )


def _backward(session: Session, work: Work) -> tuple[Any, dict[int, Any]]:
    """Gradients of the step's mean loss, in the parameters; the loss, on the device; and where the recipe asks for it
    the loss of each row, by its place in the step."""
    import torch

    loss, wanted = torch.zeros((), device=session.accelerator.device), session.recipe.train.log_rows
    by_row: dict[int, Any] = {}
    for index, batch in enumerate(work.batches):
        last = index == len(work.batches) - 1
        with _sync(session, last=last):
            part = session.objective.step(session.model, session.collate.on_device(batch), by_row=wanted)
            if wanted:
                by_row.update(zip(work.rows[index], part.rows, strict=True))
            # Processes are averaged by their wrapper, so a sum over all of them takes ``share``.
            total = part.sum * work.share
            if last and session.method.penalty:  # once a step, and not part of the loss that is reported
                total = total + session.method.penalty(session.accelerator.unwrap_model(session.model))
            session.accelerator.backward(total)
            loss += part.sum.detach() * work.share
    return session.accelerator.reduce(loss, "mean"), by_row


def _sync(session: Session, *, last: bool) -> AbstractContextManager[Any]:
    """Processes exchange gradients once a step, with the last micro-batch."""
    return nullcontext() if last else session.accelerator.no_sync(session.model)


def _halve(session: Session, work: Work, error: Exception, events: Events) -> None:
    """Half the micro-batch from here on, in the recipe too. Raises MachineError where that helps nothing."""
    import torch

    # What a pass had: of rows that stay together over passes no more than the micro-batch.
    longest = min(work.longest, session.collate.tokens or work.longest) if work.most_rows > 1 else work.longest
    if session.accelerator.num_processes > 1 or work.most_rows == 1 or longest // 2 < LEAST_TOKENS:
        row = f"a row of {work.longest} tokens" if work.most_rows == 1 else f"{longest} tokens"
        now = session.recipe.train.micro_batch_tokens
        raise MachineError(
            f"out of memory: {row} did not fit in a forward and backward pass on {session.accelerator.device}",
            hint=f"train.micro_batch_tokens (now {now}), data.max_length, or train.gradient_checkpointing: true",
        ) from error
    tokens = longest // 2
    session.optimizer.zero_grad(set_to_none=True)
    if session.accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    origin = f"halved at step {session.step + 1}, which ran out of memory"
    session.recipe = session.recipe.with_settings("train", origin, micro_batch_tokens=tokens)
    session.collate = replace(session.collate, tokens=tokens)
    events.emit(
        "warning",
        message=f"step {session.step + 1}: out of memory with {longest} tokens in a pass; "
        f"train.micro_batch_tokens is {tokens} from here on, as resolved.yaml says",
    )


class _Window:
    """The steps since the last step event, their losses still on the device."""

    def __init__(self, session: Session, skips: SkipGuard, events: Events) -> None:
        self._session, self._skips, self._events = session, skips, events
        self._restart()

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._numbers: list[Any] = []
        self._work: list[Work] = []

    def kept(self, gradients: GradientGuard) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a checkpoint holds of the guards, and of the steps since the last step event: [steps, (loss, norm,
        count, tokens, supervised tokens)]."""
        import torch

        guards = {"gradients": gradients.state(), "skips": self._skips.state()}
        numbers = torch.stack(self._numbers).tolist() if self._numbers else []
        sizes = [(work.count, work.tokens, work.supervised) for work in self._work]
        rows = [(*pair, *size) for pair, size in zip(zip(numbers[::2], numbers[1::2], strict=True), sizes, strict=True)]
        return guards, {"window": torch.tensor(rows, dtype=torch.float64).reshape(-1, 5)}

    def restore(self, found: Checkpoint) -> None:
        """Go on from what ``kept`` said of another."""
        import torch

        self._skips.restore(found.state["guards"]["skips"])
        for loss, norm, count, tokens, supervised in found.tensors["history"]["window"].tolist():
            device = self._session.accelerator.device
            self._numbers += [torch.tensor(number, dtype=torch.float32, device=device) for number in (loss, norm)]
            self._work.append(Work((), count, 0.0, int(tokens), int(supervised), 0, 0))

    def add(self, loss: Any, norm: Any, work: Work) -> None:
        self._numbers += [loss, norm.float()]
        self._work.append(replace(work, batches=()))

    def emit(self, learning_rate: float) -> None:
        """Take the losses off the device, and say what the steps came to."""
        import torch

        session = self._session
        numbers: list[float] = torch.stack(self._numbers).tolist()
        losses, norms = numbers[::2], numbers[1::2]
        seconds = time.perf_counter() - self._since
        first = session.step - len(losses) + 1
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True), start=first):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._events.emit("skipped", step=step, reason=f"loss {loss}, gradient norm {norm}")
        session.losses += losses
        self._judge(losses, norms, first)
        counts = [work.count for work in self._work]
        loss = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)
        tokens = sum(work.tokens for work in self._work)
        epoch = session.supply.epoch(session.step)
        self._events.emit(
            "step",
            step=session.step,
            steps=session.supply.steps,
            epoch=None if epoch is None else round(epoch, 4),
            learning_rate=learning_rate,
            grad_norm=norms[-1] if math.isfinite(norms[-1]) else None,
            peak_memory_bytes=peak_memory_bytes(),
            loss=loss if math.isfinite(loss) else None,
            tokens=tokens,
            supervised_tokens=sum(work.supervised for work in self._work),
            seconds_per_step=round(seconds / len(losses), 4),
            tokens_per_s=round(tokens / seconds, 2),
        )
        self._restart()

    def _judge(self, losses: Sequence[float], norms: Sequence[float], first: int) -> None:
        for step, numbers in enumerate(zip(losses, norms, strict=True), start=first):
            if all(math.isfinite(number) for number in numbers):
                self._skips.ok()
            else:
                self._skips.skipped(step)
            self._session.skipped = self._skips.total
