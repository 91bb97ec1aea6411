"""A session as a checkpoint, and back: whatever changes from step to step is named here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peftctl.errors import VerificationError
from peftctl.recipe import dump_resolved
from peftctl.train.checkpoint import Checkpoint
from peftctl.train.session import Session

RESOLVED = "Every choice made. Training this recipe gives the same bits."


def taken(session: Session, beside: Mapping[str, Any], history: Mapping[str, Any]) -> Checkpoint:
    """The session as it stands between two steps.

    ``beside``: plain values to go with it; ``history``: the steps since the last step event, as tensors.
    """
    import torch

    names = list(session.trained)
    return Checkpoint(
        {
            "trained": session.trained,
            "optimizer": _optimizer(session.optimizer, names),
            "method": session.method.state(session.accelerator.unwrap_model(session.model)),
            "history": {"losses": torch.tensor(session.losses, dtype=torch.float64), **history},
        },
        {
            "step": session.step,
            "steps": session.supply.steps,
            "skipped": session.skipped,
            "evaluations": session.evaluations,
            "best": session.best,
            "lengthened": session.lengthened,
            "origins": dict(session.recipe.origins),
            "optimizer": session.recipe.train.optimizer,
            "groups": _groups(session.optimizer, names),
            **beside,
        },
        resolved(session),
    )


def resolved(session: Session) -> str:
    """The recipe with every choice made, as YAML, and what training it gives."""
    if not session.lengthened:
        return dump_resolved(session.recipe, RESOLVED)
    words = "; ".join(f"up to step {step} the run was to have {steps} steps" for step, steps in session.lengthened)
    return dump_resolved(session.recipe, f"Every choice made, at the end: {words}.")


def restore(session: Session, found: Checkpoint) -> None:
    """Put ``found`` into a session that has been prepared anew from its resolved recipe.

    Raises VerificationError where it is not of the same trained tensors.
    """
    names = list(session.trained)
    trained(session, found)
    if found.state["groups"] != _groups(session.optimizer, names):
        raise VerificationError("the checkpoint's optimizer has other groups of tensors than the recipe's")
    session.optimizer.load_state_dict(
        {
            "state": _by_tensor(found.tensors["optimizer"], names, session.optimizer),
            "param_groups": session.optimizer.state_dict()["param_groups"],
        }
    )
    session.method.restore(session.accelerator.unwrap_model(session.model), found.tensors["method"])
    session.step, session.skipped = found.step, int(found.state["skipped"])
    session.losses = found.tensors["history"]["losses"].tolist()
    session.evaluations, session.best = list(found.state["evaluations"]), found.state["best"]
    session.lengthened = list(found.state["lengthened"])


def trained(session: Session, found: Checkpoint) -> None:
    """Give what is trained the checkpoint's values. Raises VerificationError where they do not fit."""
    values = found.tensors["trained"]
    for name, parameter in session.trained.items():
        if name not in values or values[name].shape != parameter.shape:
            raise VerificationError(f"the checkpoint does not hold {name} of shape {list(parameter.shape)}")
        parameter.data.copy_(values[name])
    if extra := values.keys() - session.trained.keys():
        raise VerificationError(f"the checkpoint holds {sorted(extra)[0]}, which the recipe does not train")


def _groups(optimizer: Any, names: list[str]) -> list[list[str]]:
    """The names of the tensors in each of the optimizer's groups."""
    return [[names[index] for index in group["params"]] for group in optimizer.state_dict()["param_groups"]]


def _optimizer(optimizer: Any, names: list[str]) -> dict[str, Any]:
    """The optimizer's state as tensors, each by the tensor it belongs to and the optimizer's word for it.

    Numbers become tensors of one number, with float64's or int64's exactness; what bitsandbytes wraps once more has a
    longer name.
    """
    import torch

    flat: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for word, value in _flat(state):
            if not isinstance(value, torch.Tensor):
                value = torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64)
                word = f"{word}{NUMBER}"
            flat[f"{names[index]}{OF}{word}"] = value
    return flat


OF, WITHIN, NUMBER = "|", "/", "#"


def _flat(state: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for word, value in state.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{above}{word}{WITHIN}")
        elif value is not None:
            found.append((f"{above}{word}", value))
    return found


def _by_tensor(flat: Mapping[str, Any], names: list[str], optimizer: Any) -> dict[int, dict[str, Any]]:
    """``_optimizer`` undone, with the optimizer's own numbering of tensors."""
    number = {name: index for index, name in enumerate(names)}
    state: dict[int, dict[str, Any]] = {}
    for key, value in flat.items():
        name, _, word = key.rpartition(OF)
        inner = state.setdefault(number[name], {})
        *above, last = word.split(WITHIN)
        for each in above:
            inner = inner.setdefault(each, {})
        inner[last.removesuffix(NUMBER)] = value.item() if last.endswith(NUMBER) else value
    return state
