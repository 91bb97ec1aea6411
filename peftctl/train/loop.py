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
from peftctl.errors import MachineError
from peftctl.events import Events
from peftctl.train.feed import Feed, Work
from peftctl.train.guards import GradientGuard, SkipGuard
from peftctl.train.memory import peak_memory_bytes
from peftctl.train.optim import schedule, set_rate, update
from peftctl.train.session import Session

DROPOUT = 1
LEAST_TOKENS = 8


def run(session: Session, events: Events) -> None:
    """Train from ``session.step`` to the plan's end. Raises DivergedError where it makes no sense to go on."""
    import torch

    train, accelerator = session.recipe.train, session.accelerator
    rate = schedule(train.schedule, train.warmup_ratio, session.supply.steps)
    gradients = GradientGuard(session.model.named_parameters(), session.supply.steps)
    trained = [parameter for parameter in session.model.parameters() if parameter.requires_grad]
    window = _Window(session, SkipGuard(), events)

    with Feed(partial(_work, session), session.supply.steps) as feed:
        while session.step < session.supply.steps:
            step = session.step
            work = feed.take(step)
            # Dropout is a function of (seed, step, rank): evaluating in between, or resuming, changes nothing.
            torch.manual_seed(derived_seed(train.seed, DROPOUT, step, accelerator.process_index))
            session.model.train()
            try:
                loss = _backward(session, work)
            except torch.OutOfMemoryError as error:
                _halve(session, work, error, events)
                feed.forget()
                continue

            norm = torch.nn.utils.clip_grad_norm_(trained, train.max_grad_norm)
            finite = torch.isfinite(loss) & torch.isfinite(norm)
            # Where a layer may be left out by chance, one without a gradient is no sign of anything.
            if gradients.watching and finite and not session.method.leaves_out(session.recipe.method):
                gradients.after_backward()
            learning_rate = (train.learning_rate or 0.0) * rate(step)
            set_rate(session.optimizer, learning_rate)
            update(session.optimizer, finite)
            if session.method.after_update and finite:
                session.method.after_update(session.model, step)
            session.optimizer.zero_grad(set_to_none=True)
            session.step += 1

            window.add(loss, norm, work)
            if session.step % train.log_every == 0 or session.step == session.supply.steps:
                window.emit(learning_rate)
            every = session.recipe.eval.every
            if session.measure and every and session.step % every == 0 and session.step < session.supply.steps:
                events.emit("eval", step=session.step, **session.measure(session.model))


def _work(session: Session, step: int) -> Work:
    """The rows of ``step`` that are this process's, as micro-batches."""
    rank, ranks = session.accelerator.process_index, session.accelerator.num_processes
    rows = session.supply.rows(step)
    # The count is known before any forward pass, so each micro-batch is divided by the whole step's.
    count = sum(session.objective.count(row) for row in rows)
    mine = sorted(rows, key=len)[rank::ranks]
    share = ranks / count if mine else 0.0
    mine = mine or rows[:1]
    groups = [[mine[index] for index in group] for group in session.collate.groups(mine)]
    return Work(
        batches=[session.collate.on_host(group) for group in groups],
        count=count,
        share=share,
        tokens=sum(len(row) for row in rows),
        supervised=sum(row.supervised for row in rows),
        longest=max(sum(len(row) for row in group) for group in groups),
        most_rows=max(len(group) for group in groups),
    )


def _backward(session: Session, work: Work) -> Any:
    """Gradients of the step's mean loss, in the parameters; and the loss, on the device."""
    import torch

    loss = torch.zeros((), device=session.accelerator.device)
    for index, batch in enumerate(work.batches):
        last = index == len(work.batches) - 1
        with _sync(session, last=last):
            part = session.objective.step(session.model, session.collate.on_device(batch))
            # Processes are averaged by their wrapper, so a sum over all of them takes ``share``.
            total = part.sum * work.share
            if last and session.method.penalty:  # once a step, and not part of the loss that is reported
                total = total + session.method.penalty(session.accelerator.unwrap_model(session.model))
            session.accelerator.backward(total)
            loss += part.sum.detach() * work.share
    return session.accelerator.reduce(loss, "mean")


def _sync(session: Session, *, last: bool) -> AbstractContextManager[Any]:
    """Processes exchange gradients once a step, with the last micro-batch."""
    return nullcontext() if last else session.accelerator.no_sync(session.model)


def _halve(session: Session, work: Work, error: Exception, events: Events) -> None:
    """Half the micro-batch from here on, in the recipe too. Raises MachineError where that helps nothing."""
    import torch

    if session.accelerator.num_processes > 1 or work.most_rows == 1 or work.longest // 2 < LEAST_TOKENS:
        row = f"a row of {work.longest} tokens" if work.most_rows == 1 else f"{work.longest} tokens"
        now = session.recipe.train.micro_batch_tokens
        raise MachineError(
            f"out of memory: {row} did not fit in a forward and backward pass on {session.accelerator.device}",
            hint=f"train.micro_batch_tokens (now {now}), data.max_length, or train.gradient_checkpointing: true",
        ) from error
    tokens = work.longest // 2
    session.optimizer.zero_grad(set_to_none=True)
    if session.accelerator.device.type == "cuda":
        torch.cuda.empty_cache()
    origin = f"halved at step {session.step + 1}, which ran out of memory"
    session.recipe = session.recipe.with_settings("train", origin, micro_batch_tokens=tokens)
    session.collate = replace(session.collate, tokens=tokens)
    events.emit(
        "warning",
        message=f"step {session.step + 1}: out of memory with {work.longest} tokens in a pass; "
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
