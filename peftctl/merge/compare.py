"""Base with adapter and the merged model side by side, whole, on text."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from peftctl.data.sources import Sourced
from peftctl.errors import PeftctlError, VerificationError
from peftctl.fast import equal
from peftctl.merge import adapters, memory
from peftctl.merge.adapters import Combine
from peftctl.merge.source import WEIGHTS, Source
from peftctl.merge.weights import Weights
from peftctl.model import identity, load
from peftctl.tasks import Task
from peftctl.text.tokens import prompt_ids

LONGEST, ROWS = 512, 16  # tokens of a row, and rows
MOST = 32  # positions of a row that are compared: logits are wide
SHARE = 0.5  # of the memory that is free, for the one model that is in it at a time
PROMPTS = (
    "The tide went out before noon, and by evening the boats",
    "Three times seven is",
    "def mean(values):\n    return",
    "Dear Ms Okafor,\n\nThank you for your letter of 3 May. We have looked into",
    "Der Zug nach Lübeck fährt heute von Gleis",
    "1. Wash the rice until the water runs clear.\n2.",
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """Ids of one row, and the positions whose logits are compared; of a model that has a task's head all of them."""

    ids: Sequence[int]
    at: Sequence[int]


def fits(source: Source) -> bool:
    """Whether one whole model in float32 takes less than half of the memory that is free."""
    with Weights(identity.weight_files(source.base.folder)) as weights:
        numbers = sum(prod(stored.shape) for stored in weights.stored.values())
    return 4 * numbers <= SHARE * memory.available()


def models(
    source: Source, combine: Combine, folder: Path, dtype: str, judged: bool, note: Callable[[str], None]
) -> dict[str, float]:
    """How far the merged model in ``folder``, of ``dtype``, is from base and adapter as trained: the largest difference
    of logits and its share of their norm, the mean divergence (KL, nats), the share of positions with the same
    likeliest token, and both losses on held-out rows where the run has some.

    Raises VerificationError where, ``judged``, they differ by more than rounding explains.
    """
    import torch

    tokenizer = load.load_tokenizer(replace(source.base, folder=folder), source.model)
    task = source.task
    whole = [tokenizer(each)["input_ids"] if task.head else prompt_ids(each, tokenizer, whole=True) for each in PROMPTS]
    prompts = [ids[:MOST] for ids in whole]
    texts = [Text(ids, range(len(ids))) for ids in prompts if ids]
    rows = _held_out(source, tokenizer, note)
    quantised = source.model.quantization is not None
    # Products in float32, so that nothing but the rounding of weights comes between the two.
    products = source.model.dtype if quantised else "float32"
    with tempfile.TemporaryDirectory() as scratch:
        base = load.load_model(source.base, source.model, source.task, products)
        trained = adapters.put(base, source, combine, _give(base, source), Path(scratch))
        before = [_logits(task, trained, text) for text in (*texts, *rows)]
        layers = trained.config.get_text_config().num_hidden_layers
        del base, trained
    gc.collect()
    plain = source.model.model_copy(update={"quantization": None})
    merged = load.load_model(replace(source.base, folder=folder), plain, source.task, products)
    after = [_logits(task, merged, text) for text in (*texts, *rows)]
    del merged
    gc.collect()
    one, two = torch.cat(before).float(), torch.cat(after).float()
    found = {
        "max_difference": float((one - two).abs().max()),
        "relative_difference": float((one.double() - two.double()).norm() / one.double().norm()),
        "kl": max(0.0, float((one.softmax(-1) * (one.log_softmax(-1) - two.log_softmax(-1))).sum(-1).mean())),
        "top1": float((one.argmax(-1) == two.argmax(-1)).float().mean()),
    }  # fmt: skip
    if rows and not task.head:
        found["loss_of_adapter"] = _loss(before[len(texts) :], rows)
        found["loss_merged"] = _loss(after[len(texts) :], rows)
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


def _held_out(source: Source, tokenizer: Any, note: Callable[[str], None]) -> list[Text]:
    """Some of the rows that the run held out; none where it held out none, or they are not what they were."""
    from peftctl.data import sources
    from peftctl.data.encode import Encoding, encode

    if source.run is None:
        return []
    recipe = source.run.recipe
    try:
        source.run.check_data()
        examples: Sequence[Sourced] = sources.held_out(recipe)[:ROWS]
    except (PeftctlError, OSError) as error:
        note(f"the run's held-out rows cannot be used to compare: {error}")
        return []
    if not examples:
        return []
    encoding = Encoding(source.task, tokenizer, recipe.data.max_length or LONGEST, recipe.data.learn)
    counted = replace(sources.tally(recipe.data), read=len(examples))
    encoded = encode(sources.Side(examples, counted), encoding, "held-out").encoded
    rows = [encoded[number] for number in range(len(encoded))]
    texts = []
    for row in rows:
        if source.task.head:
            texts.append(Text(row.ids[:LONGEST], ()))
            continue
        learned = [at for at in range(min(len(row), LONGEST) - 1) if row.weights[at + 1]][:MOST]
        if learned:
            texts.append(Text(row.ids[: learned[-1] + 2], learned))
    return texts


def _logits(task: Task, model: Any, text: Text) -> Any:
    """[positions compared, vocabulary or labels], float32."""
    import torch

    ids = torch.tensor([list(text.ids)])
    with torch.no_grad():
        if task.head:
            outputs = task.outputs(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            return outputs.reshape(-1, outputs.shape[-1])
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0]
    return logits[list(text.at)].float()


def _loss(logits: Sequence[Any], rows: Sequence[Text]) -> float:
    """The mean loss of the tokens that follow the positions."""
    import torch

    total = 0.0
    for each, row in zip(logits, rows, strict=True):
        targets = torch.tensor([row.ids[at + 1] for at in row.at])
        total += float(torch.nn.functional.cross_entropy(each, targets, reduction="sum"))
    return total / sum(len(row.at) for row in rows)
