"""The training loop, top to bottom. Its state is the Session; what it has to say goes out as events."""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from peftctl.data.order import derived_seed
from peftctl.events import Events
from peftctl.train.guards import GradientGuard, SkipGuard
from peftctl.train.memory import peak_memory_bytes
from peftctl.train.optim import schedule
from peftctl.train.session import Session

DROPOUT = 1


def run(session: Session, events: Events) -> None:
    """Train from ``session.step`` to the plan's end. Raises DivergedError where it makes no sense to go on."""
    import torch

    train, accelerator = session.recipe.train, session.accelerator
    rank, ranks = accelerator.process_index, accelerator.num_processes
    rate = schedule(train.schedule, train.warmup_ratio, session.plan.steps)
    gradients = GradientGuard(session.model.named_parameters(), session.plan.steps)
    skips = SkipGuard()
    trained = [parameter for parameter in session.model.parameters() if parameter.requires_grad]
    window = _Window()

    while session.step < session.plan.steps:
        step = session.step
        rows = [session.rows.encoded[index] for index in session.plan.indices(step)]
        # The count is known before any forward pass, so each micro-batch is divided by the whole step's.
        count = sum(session.objective.count(row) for row in rows)
        mine = sorted(rows, key=len)[rank::ranks]
        # A process that the last step has no row for still takes part in the exchange of gradients, with nothing.
        share = ranks / count if mine else 0.0
        mine = mine or rows[:1]
        groups = session.collate.groups(mine)
        # Dropout is a function of (seed, step, rank): evaluating in between, or resuming, changes nothing.
        torch.manual_seed(derived_seed(train.seed, DROPOUT, step, rank))

        session.model.train()
        loss = torch.zeros((), device=accelerator.device)
        for index, group in enumerate(groups):
            with _sync(session, last=index == len(groups) - 1):
                part = session.objective.step(session.model, session.collate([mine[row] for row in group]))
                # Processes are averaged by their wrapper, so a sum over all of them takes this factor.
                accelerator.backward(part.sum * share)
                loss += part.sum.detach() * share
        loss = accelerator.reduce(loss, "mean")

        norm = torch.nn.utils.clip_grad_norm_(trained, train.max_grad_norm)
        learning_rate = (train.learning_rate or 0.0) * rate(step)
        finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
        if finite:
            if gradients.watching:
                gradients.after_backward()
            for group in session.optimizer.param_groups:
                group["lr"] = learning_rate
            session.optimizer.step()
            session.method.after_update(session.model, step)
            skips.ok()
        else:
            events.emit("skipped", step=step + 1, reason=f"loss {float(loss)}, gradient norm {float(norm)}")
        session.optimizer.zero_grad(set_to_none=True)
        session.step += 1
        session.losses.append(float(loss))
        if not finite:
            skips.skipped(session.step)
            session.skipped = skips.total

        window.add(float(loss), count, sum(len(row) for row in rows), sum(row.supervised for row in rows))
        if session.step % train.log_every == 0 or session.step == session.plan.steps:
            events.emit(
                "step",
                step=session.step,
                steps=session.plan.steps,
                epoch=round(session.plan.epoch(session.step), 4),
                learning_rate=learning_rate,
                grad_norm=float(norm) if math.isfinite(float(norm)) else None,
                peak_memory_bytes=peak_memory_bytes(),
                **window.take(),
            )
        every = session.recipe.eval.every
        if session.measure and every and session.step % every == 0 and session.step < session.plan.steps:
            events.emit("eval", step=session.step, **session.measure(session.model))


def _sync(session: Session, *, last: bool) -> AbstractContextManager[Any]:
    """Processes exchange gradients once a step, with the last micro-batch."""
    return nullcontext() if last else session.accelerator.no_sync(session.model)


class _Window:
    """Sums over the steps since the last step event."""

    def __init__(self) -> None:
        self._restart()

    def _restart(self) -> None:
        self._since = time.perf_counter()
        self._loss = self._count = 0.0
        self._tokens = self._supervised = self._steps = 0

    def add(self, loss: float, count: float, tokens: int, supervised: int) -> None:
        self._loss += loss * count
        self._count += count
        self._steps += 1
        self._tokens += tokens
        self._supervised += supervised

    def take(self) -> dict[str, float | int | None]:
        seconds = time.perf_counter() - self._since
        loss = self._loss / self._count
        taken = {
            "loss": loss if math.isfinite(loss) else None,
            "tokens": self._tokens,
            "supervised_tokens": self._supervised,
            "seconds_per_step": round(seconds / self._steps, 4),
            "tokens_per_s": round(self._tokens / seconds, 2),
        }
        self._restart()
        return taken
