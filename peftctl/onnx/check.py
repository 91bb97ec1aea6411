"""Files against torch: all that a model says of some rows, and what it writes, the likeliest token each time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.errors import VerificationError
from peftctl.generate import stop_ids
from peftctl.merge.compare import PROMPTS
from peftctl.model.load import attends_to
from peftctl.onnx.cases import cases
from peftctl.onnx.contract import Case, Form
from peftctl.onnx.seq2seq import start_id
from peftctl.onnx.session import Sessions
from peftctl.tasks import Task

TOLERANCE = 1e-4  # of the largest number there is among those compared, where that is above 1
TEXTS, TOKENS = 3, 20  # to be written


@dataclass(frozen=True)
class Text:
    """What torch wrote after ``prompt``, and with which logits [tokens, vocabulary]."""

    prompt: Sequence[int]
    start: int
    stops: Sequence[int]
    written: Sequence[int]
    logits: Any


@dataclass(frozen=True)
class Wanted:
    """What torch says of each case, and what it writes."""

    cases: Sequence[Case]
    said: Sequence[Mapping[str, Any]]
    texts: Sequence[Text]


def verify(
    form: Form, task: Task, load: Callable[[], tuple[Any, Any]], folder: Path, names: Sequence[str]
) -> dict[str, Any]:
    """Figures of how far the files ``names`` in ``folder`` are from the model that ``load`` gives, with its tokenizer.

    Torch comes first and is let go of: one of the two is in memory. Raises VerificationError where they differ.
    """
    wanted = _wanted(form, task, *load())
    gc.collect()
    files = Sessions(folder, names)
    by_token = form.by_token(files)
    worst = 0.0
    for case, said in zip(wanted.cases, wanted.said, strict=True):
        worst = max(worst, _compared(case, said, form.found(files, case), by_token))
    figures: dict[str, Any] = {
        "verified": "yes",
        "max_difference": worst,
        "tolerance": TOLERANCE,
        "shapes": [list(case.shape) for case in wanted.cases],
    }
    if not wanted.texts:
        return figures
    return figures | {"generated": _written(form, files, wanted.texts)}


def _wanted(form: Form, task: Task, model: Any, tokenizer: Any) -> Wanted:
    import torch

    rows = cases(model, tokenizer)
    with torch.no_grad():
        said = [form.wanted(model, task, case) for case in rows]
        texts = [_text(model, tokenizer, task, prompt) for prompt in PROMPTS[:TEXTS]] if task.generates else []
    return Wanted(rows, said, texts)


def _text(model: Any, tokenizer: Any, task: Task, prompt: str) -> Text:
    import torch
    from transformers import GenerationConfig

    ids = task.prompt(prompt, tokenizer)[: attends_to(model.config, tokenizer) - TOKENS]
    own, stops, start = model.generation_config, stop_ids(model.generation_config, tokenizer), start_id(model)
    # Nothing of what the model's own settings say of drawing, beams, repetition and the like.
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=TOKENS,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0,
        decoder_start_token_id=start,
        output_logits=True,
        return_dict_in_generate=True,
    )
    try:
        asked = torch.tensor([ids])
        made = model.generate(input_ids=asked, attention_mask=torch.ones_like(asked))
    finally:
        model.generation_config = own
    written = made.sequences[0, 1 if model.config.is_encoder_decoder else len(ids) :].tolist()
    return Text(ids, start, stops, written, torch.cat(made.logits).numpy())


def _compared(case: Case, wanted: Mapping[str, Any], found: Mapping[str, Any], by_token: Sequence[str]) -> float:
    """The largest difference, of the largest number compared where that is above 1. Raises VerificationError where it
    is more than rounding."""
    import numpy as np

    worst = 0.0
    for name, one in wanted.items():
        other = found[name]
        if name in by_token:
            one, other = (each[case.mask.astype(bool)] for each in (one, other))
        if one.shape != other.shape:
            raise VerificationError(
                f"{name} is of shape {list(other.shape)} in the file, of {list(one.shape)} in torch"
            )
        difference = float(np.abs(one - other).max())
        allowed = TOLERANCE * max(1.0, float(np.abs(one).max()))
        if not difference <= allowed:
            shape = "×".join(map(str, case.shape))
            raise VerificationError(
                f"{name} of rows of {shape} differ from torch's by {difference:.2g}, where rounding explains "
                f"{allowed:.2g}; nothing was published"
            )
        worst = max(worst, difference / max(1.0, float(np.abs(one).max())))
    return worst


def _written(form: Form, files: Sessions, texts: Sequence[Text]) -> dict[str, int]:
    """How much was written, token by token the same. Raises VerificationError where a text differs.

    Two tokens as likely as each other, to within rounding, are both right: from there on the texts part."""
    count = ties = 0
    for text in texts:
        found = form.greedy(files, text.prompt, text.start, text.stops, TOKENS)
        pairs = zip(text.written, found, strict=False)
        parting = next((at for at, (one, other) in enumerate(pairs) if one != other), None)
        if parting is None and len(found) == len(text.written):
            count += len(found)
            continue
        at = min(len(found), len(text.written)) if parting is None else parting
        if parting is None or not _tied(text.logits[at], text.written[at], found[at]):
            raise VerificationError(
                f"what the file writes differs from what the model does from token {at + 1} on; nothing was published"
            )
        count, ties = count + at, ties + 1
    return {"texts": len(texts), "tokens": count, **({"ties": ties} if ties else {})}


def _tied(logits: Any, one: int, other: int) -> bool:
    import numpy as np

    return bool(logits[one] - logits[other] <= TOLERANCE * max(1.0, float(np.abs(logits).max())))
