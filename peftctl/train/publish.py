"""What a run leaves when its steps are made: the artifact, checked, its manifest, and what it measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from peftctl.atomic import inventory, publish_directory, sha256, write_json
from peftctl.data.collate import plain_layout
from peftctl.events import Events
from peftctl.methods import Anatomy
from peftctl.model import adapter, identity
from peftctl.model.locate import Base
from peftctl.tasks import Task
from peftctl.train import checkpoint, kept, rundir
from peftctl.train.session import Session

PROBE_ROWS = 2
MANIFEST_VERSION = 1


def publish(
    session: Session, base: Base, anatomy: Anatomy, run: Path, events: Events, asked: Mapping[str, Any]
) -> None:
    """The artifact and its manifest, and what it measures on the held-out rows."""
    chosen = session.step
    if session.best and session.best["step"] != session.step:
        chosen = session.best["step"]
        found = checkpoint.read(checkpoint.path_of(run, chosen))
        kept.trained(session, found)
        session.method.restore(session.accelerator.unwrap_model(session.model), found.tensors["method"])
    after = f" (as it was after step {chosen}, the best)" if chosen != session.step else ""
    events.emit("stage", name="publish", detail=f"{run / session.method.artifact}{after}")
    facts = {**_manifest(session, base, anatomy, _artifact(session, base, run), run), "asked": asked}
    facts |= {"published_step": chosen, "lengthened": session.lengthened}
    write_json(run / rundir.MANIFEST, facts)  # before measuring: an evaluation that fails loses no run
    if session.measure:
        events.emit("stage", name="evaluate", detail=f"{len(session.measure.rows)} held-out rows")
        with session.fast.on(session.model):
            facts["metrics"] = session.measure(session.model)
        facts["metrics"] |= session.measure.written(session.model)
        events.emit("eval", step=chosen, **facts["metrics"])
        write_json(run / rundir.MANIFEST, facts)


def _artifact(session: Session, base: Base, run: Path) -> dict[str, float]:
    """What was trained in ``run``, by rename, after what was saved has given the trained model's logits.

    From here on the session's model is the base with the adapter read back from disk.
    """
    import torch

    from peftctl.fast.equal import tolerance

    model, tokenizer = session.accelerator.unwrap_model(session.model), session.collate.tokenizer
    collate = replace(session.collate, layout=plain_layout(tokenizer))
    # Row by row: vectors that a network makes for several rows differ, by rounding, from those it makes to be saved.
    inputs = [collate([row])["inputs"] for row in session.supply.shortest(PROBE_ROWS)]
    method, settings = session.method, session.recipe.method
    method.finish(model)
    trained = _outputs(session.task, model, inputs)
    dtype, layers = getattr(torch, session.recipe.model.dtype), model.config.get_text_config().num_hidden_layers
    rounding = tolerance(dtype) * layers**0.5 if method.rounds(settings) else adapter.EPS
    with publish_directory(run / method.artifact) as aside:
        adapter.save(model, method, settings, session.task, tokenizer, base, aside, loaded=session.recipe.model)
        session.model = adapter.reload(model, method, settings, aside)
        verified = adapter.compare(trained, _outputs(session.task, session.model, inputs), rounding)
    return verified


def _outputs(task: Task, model: Any, inputs: Sequence[Mapping[str, Any]]) -> Any:
    """All that the model says of every row, end to end."""
    import torch

    return torch.cat([adapter.outputs(task, model, each).flatten() for each in inputs])


def _manifest(
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
        "loads_with": adapter.loads_with(session.method, recipe.method, run / artifact),
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
                "size_bytes": (run / rundir.RESOLVED).stat().st_size,
                "sha256": sha256(run / rundir.RESOLVED),
            },
            **{f"{artifact}/{name}": entry for name, entry in inventory(run / artifact).items()},
        },
    }
