"""A GGUF file, loaded in llama.cpp, beside the model that it was made of."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.errors import VerificationError
from peftctl.gguf import runtime, texts
from peftctl.gguf.families import Family
from peftctl.model.divergence import divergence

POSITIONS, LONGEST = 200, 96  # ids of which logits are compared, and of a row
WRITTEN = 24  # ids that are written after a prompt
# How far logits may be apart relative to their norm, in one layer: llama.cpp rounds what goes into a layer to the type
# of its weights, too. What its quantiser makes is told, not judged.
TOLERANCES = {"f32": 2e-4, "f16": 4e-3, "bf16": 3e-2}

Reference = Callable[[], tuple[Any, list[list[int]]]]


@dataclass(frozen=True)
class Asked:
    """What both are asked: ``rows`` of ids for logits, ``prompts`` to go on from, ``words`` and ``chats`` to tokenise.
    ``ends``: ids that end a text. ``form``: Unicode's normal form that all of them are in, where that matters."""

    rows: list[list[int]]
    prompts: list[list[int]]
    words: list[str]
    chats: list[str]
    ends: tuple[int, ...]
    form: str = ""


def tolerance(type_: str, kind: Family, layers: int) -> float | None:
    """How far logits of a file of ``type_`` may be apart, relative to their norm; None where that is not judged."""
    # llama.cpp takes GELU from a table in float16.
    rounded = "f16" if type_ == "f32" and kind.activation.startswith("gelu") else type_
    return layers**0.5 * TOLERANCES[rounded] if rounded in TOLERANCES else None


def asked(tokenizer: Any, ends: Sequence[int], form: str) -> Asked:
    """``tokenizer``: transformers' own; ``form``: the one it brings texts to, which llama.cpp does not."""
    turns = texts.conversation(tokenizer.chat_template)
    plain = tokenizer("Three times seven is")["input_ids"]
    chats, prompts = [], [plain]
    if turns:
        chats = [_rendered(tokenizer, turns[: last + 1]) for last in range(0, len(turns), 2)]
        prompts.append(tokenizer(chats[0], add_special_tokens=False)["input_ids"])
    rows = texts.positions(tokenizer, POSITIONS, LONGEST)
    words = [
        unicodedata.normalize(form, text) if form else text  # type: ignore[arg-type]
        for text in texts.tricky(tokenizer)
    ]
    return Asked(rows, prompts, words, chats, tuple(ends), form)


def _rendered(tokenizer: Any, turns: Sequence[Mapping[str, str]]) -> str:
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return text


def said(model: Any, what: Asked) -> tuple[Any, list[list[int]]]:
    """The model's logits of all rows, one after another, float32 [positions, vocabulary], and what it writes after each
    prompt."""
    import torch

    logits, written = [], []
    with torch.no_grad():
        for row in what.rows:
            logits.append(model(input_ids=torch.tensor([row]), use_cache=False).logits[0].float())
        for prompt in what.prompts:
            ids = list(prompt)
            while len(ids) < len(prompt) + WRITTEN and (len(ids) == len(prompt) or ids[-1] not in what.ends):
                ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
            written.append(ids[len(prompt) :])
    return torch.cat(logits), written


@dataclass(frozen=True)
class File:
    """A GGUF file of ``type``, with an adapter's in ``lora`` where there is one. ``tolerance``: how far its logits may
    be apart relative to their norm, None where that is told and not judged."""

    path: Path
    type: str
    tolerance: float | None
    lora: Path | None = None


def check(file: File, tokenizer: Any, what: Asked, reference: Reference | None, scratch: Path) -> dict[str, Any]:
    """Figures of ``file`` beside ``reference``, which gives what ``said`` does; where that is None logits and texts are
    not compared.

    Raises VerificationError where llama.cpp does not load it, or says something else.
    """
    request = {
        "do": "ask", "path": str(file.path), "lora": str(file.lora) if file.lora else None,
        "logits": str(scratch / "logits"),
        "rows": what.rows if reference else [], "prompts": what.prompts if reference else [], "most": WRITTEN,
        "texts": what.words, "chats": what.chats, "ends": list(what.ends),
    }  # fmt: skip
    answer = runtime.run(request, scratch)
    found = _tokenisation(tokenizer, what, answer)
    if lost := [end for end in what.ends if end not in answer["ends"]]:
        shown = ", ".join(tokenizer.convert_ids_to_tokens(lost))
        raise VerificationError(f"llama.cpp does not stop at {shown}, which ends an answer; nothing was published")
    if (tokenizer.chat_template or None) != answer["template"]:
        raise VerificationError("the chat template in the file is not the tokenizer's; nothing was published")
    if reference is None:
        return found
    wanted, written = reference()
    found |= _logits(wanted, scratch / "logits", file)
    same = sum(one == two for one, two in zip(written, answer["written"], strict=True))
    found |= {"texts_written": len(written), "texts_the_same": same}
    # Where more than float32's rounding is between the two, the likeliest of two tokens may change.
    exact = file.tolerance is not None and file.tolerance < TOLERANCES["f16"]
    if exact and same < len(written):
        raise VerificationError(
            f"llama.cpp writes {len(written) - same} of {len(written)} texts otherwise; nothing was published"
        )
    return found


def _tokenisation(tokenizer: Any, what: Asked, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Raises VerificationError naming the first text that the two cut differently."""
    for whole, sources, ids in ((True, what.words, answer["ids"]), (False, what.chats, answer["chats"])):
        for text, theirs in zip(sources, ids, strict=True):
            ours = tokenizer(text, add_special_tokens=whole)["input_ids"]
            if ours != theirs:
                raise VerificationError(
                    f"llama.cpp cuts {text!r} into {theirs[:24]}, and the tokenizer into {ours[:24]}; "
                    "nothing was published"
                )
    found: dict[str, Any] = {"texts_tokenised": len(what.words) + len(what.chats)}
    return found | ({"texts_in_form": what.form} if what.form else {})


def _logits(wanted: Any, path: Path, file: File) -> dict[str, Any]:
    import numpy as np
    import torch

    theirs = torch.from_numpy(np.fromfile(path, dtype=np.float32).reshape(tuple(wanted.shape)))
    found: dict[str, Any] = {
        "positions": len(wanted),
        "kl": divergence(wanted, theirs),
        "top1": float((wanted.argmax(-1) == theirs.argmax(-1)).double().mean()),
        "max_difference": float((wanted - theirs).abs().max()),
        "relative_difference": float((wanted.double() - theirs.double()).norm() / wanted.double().norm()),
    }
    if not math.isfinite(found["relative_difference"]):
        raise VerificationError("llama.cpp gives logits that are not finite; nothing was published")
    if file.tolerance is not None:
        found["tolerance"] = file.tolerance
        if not found["relative_difference"] <= file.tolerance:
            raise VerificationError(
                f"llama.cpp's logits differ by {found['relative_difference']:.2g} of their norm "
                f"(KL {found['kl']:.2g}), where rounding to {file.type} explains {file.tolerance:.2g}; "
                "nothing was published"
            )
    return found
