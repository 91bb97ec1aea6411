"""Base with adapter and the merged model side by side, whole, on text."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from peftctl.data.collate import Collator, plain_layout
from peftctl.data.sources import Sourced
from peftctl.errors import PeftctlError, VerificationError
from peftctl.evaluation.loss import evaluate, summarise
from peftctl.fast import equal
from peftctl.merge import adapters, memory
from peftctl.merge.adapters import Combine
from peftctl.merge.source import WEIGHTS, Source
from peftctl.merge.weights import Weights
from peftctl.model import identity, load
from peftctl.model.adapter import outputs
from peftctl.model.divergence import divergence
from peftctl.tasks import Task
from peftctl.text.tokens import Encoded

LONGEST, ROWS = 512, 16  # tokens of a row, and rows
LOOKED_INTO = 4  # rows of which logits are compared, beside the loss
MOST = 32  # positions of a row that are compared: logits are wide
SHARE = 0.5  # of the memory that is free, for the one model that is in it at a time
CUTTING = ("truncate_end", "truncate_start", "split")  # ways to deal with long rows that leave something of them
PROMPTS = (
    "The tide went out before noon, and by evening the boats",
    "Three times seven is",
    "def mean(values):\n    return",
    "Dear Ms Okafor,\n\nThank you for your letter of 3 May. We have looked into",
    "Der Zug nach Lübeck fährt heute von Gleis",
    "1. Wash the rice until the water runs clear.\n2.",
)  # fmt: skip


def fits(folder: Path) -> bool:
    """Whether the whole model in ``folder`` takes, in float32, less than half of the memory that is free."""
    return 4 * numbers(folder) <= SHARE * memory.available()


def numbers(folder: Path) -> int:
    """How many numbers a model's weights are."""
    with Weights(identity.weight_files(folder)) as weights:
        return sum(prod(stored.shape) for stored in weights.stored.values())


def models(
    source: Source, combine: Combine, folder: Path, dtype: str, judged: bool, note: Callable[[str], None]
) -> dict[str, float]:
    """How far the merged model in ``folder``, of ``dtype``, is from base and adapter as trained: the largest difference
    of logits and its share of their norm, the mean divergence (KL, nats), the share of positions with the same
    likeliest token or class, and both losses on held-out rows where the run has some.

    Raises VerificationError where, ``judged``, they differ by more than rounding explains.
    """
    import torch

    tokenizer, task = load.load_tokenizer(replace(source.base, folder=folder), source.model), source.task
    rows = _held_out(source, tokenizer, note)
    texts = [*_prompts(task, tokenizer), *rows[:LOOKED_INTO]]
    collate = Collator(task, tokenizer, plain_layout(tokenizer), 0, torch.device("cpu"))
    quantised = source.model.quantization is not None
    # Products in float32, so that nothing but the rounding of weights comes between the two.
    products = source.model.dtype if quantised else "float32"
    with tempfile.TemporaryDirectory() as scratch:
        base = load.load_model(source.base, source.model, source.task, products)
        trained = adapters.put(base, source, combine, _give(base, source), Path(scratch))
        before, loss = [_outputs(trained, row, collate) for row in texts], _loss(trained, rows, collate)
        layers = trained.config.get_text_config().num_hidden_layers
        del base, trained
    gc.collect()
    plain = source.model.model_copy(update={"quantization": None})
    merged = load.load_model(replace(source.base, folder=folder), plain, source.task, products)
    after, loss_merged = [_outputs(merged, row, collate) for row in texts], _loss(merged, rows, collate)
    del merged
    gc.collect()
    one, two = torch.cat(before).float(), torch.cat(after).float()
    found = {
        "max_difference": float((one - two).abs().max()),
        "relative_difference": float((one.double() - two.double()).norm() / one.double().norm()),
    }
    if task.classes:
        found |= {
            "kl": divergence(one.flatten(0, -2), two.flatten(0, -2)),
            "top1": float((one.argmax(-1) == two.argmax(-1)).float().mean()),
        }
    if loss is not None and loss_merged is not None:
        found |= {"loss_of_adapter": loss, "loss_merged": loss_merged}
    widest = max((getattr(torch, each) for each in (dtype, products)), key=equal.tolerance)
    found["tolerance"] = layers**0.5 * equal.tolerance(widest)
    if judged and not found["relative_difference"] <= found["tolerance"]:
        raise VerificationError(
            f"the merged model's logits differ from base and adapter by {found['relative_difference']:.2g} of their "
            f"norm, where rounding to {dtype} explains {found['tolerance']:.2g}; nothing was published"
        )
    return found


def _give(model: Any, source: Source) -> dict[str, str]:
    """Let ``model`` have the matrices that an adapter brings whole; which they are."""
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters(remove_duplicate=False)}
    given = adapters.given(source.part, shapes)
    if not given:
        return {}
    with Weights([source.part.folder / WEIGHTS]) as weights:
        for name, key in given.items():
            value = weights.read(key)
            if len(value) != model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(len(value), mean_resizing=False)
            model.get_parameter(name).data = value.to(model.get_parameter(name).dtype)
    return given


def _held_out(source: Source, tokenizer: Any, note: Callable[[str], None]) -> list[Encoded]:
    """Some of the rows that the run held out; none where it held out none, or they are not what they were."""
    from peftctl.data import sources
    from peftctl.data.encode import Encoding, encode

    if source.run is None:
        return []
    recipe = source.run.recipe
    try:
        source.run.check_data()
        examples: Sequence[Sourced] = sources.held_out(recipe)[:ROWS]
        if not examples:
            return []
        longest = min(recipe.data.max_length or LONGEST, LONGEST)
        overlong = recipe.data.overlong if recipe.data.overlong in CUTTING else _cutting(source.task)
        encoding = Encoding(source.task, tokenizer, longest, recipe.data.learn, overlong)
        counted = replace(sources.tally(recipe.data), read=len(examples))
        encoded = encode(sources.Side(examples, counted), encoding, "held-out").encoded
    except (PeftctlError, OSError) as error:
        why = error.message if isinstance(error, PeftctlError) else error
        note(f"the run's held-out rows cannot be used to compare: {why}")
        return []
    return [encoded[number] for number in range(len(encoded))]


def _prompts(task: Task, tokenizer: Any) -> list[Encoded]:
    """Rows with a few texts in them, their first ``MOST`` tokens."""
    rows = []
    for made in task.encode([task.probe(text) for text in PROMPTS], tokenizer):
        if isinstance(made, list):
            rows += [part for row in made for part in task.fit(row, MOST, _cutting(task), tokenizer)[:1]]
    return rows


def _cutting(task: Task) -> str:
    """A way to deal with long rows that leaves something of them."""
    return next(way for way in CUTTING if way in task.ways)


def _outputs(model: Any, row: Encoded, collate: Collator) -> Any:
    """What the model says of a row's last positions, at most ``MOST``: [positions, width], float32."""
    said = outputs(collate.task, model, collate([row])["inputs"])
    return said.reshape(-1, said.shape[-1])[-MOST:].clone()  # without the rest, which is wide


def _loss(model: Any, rows: Sequence[Encoded], collate: Collator) -> float | None:
    """The task's loss on ``rows``; None where there are none, or it is not one of single rows."""
    if not rows:
        return None
    collate = replace(collate, tokens=LONGEST)
    return summarise(collate.task, evaluate(model, rows, collate)).get("loss")
