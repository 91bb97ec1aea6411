"""What a model can be trusted with, measured on the loaded model, adapter included; never looked up by its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from peftctl.fast.equal import near
from peftctl.model.attention import packed_attention
from peftctl.model.causal import looks_ahead
from peftctl.model.head import Head, plain_head
from peftctl.tasks import Batch, Layout, Task, tensors
from peftctl.text.tokens import Encoded

ROWS = (11, 7)
SEED = 11
LONGEST = 200  # characters of a library's message
# How far back layers see, in a model's config: transformers says so by a mask, and packed rows have none.
WINDOWS = ("sliding_window", "attention_chunk_size")


@dataclass(frozen=True)
class Profile:
    """``packs``: two rows packed give the logits and gradients of the rows alone; else ``why_not`` says what else.

    ``head``: the output head where it is plain, that is where the logits are its products and nothing more.
    ``slices_logits``: the forward pass can be asked for some columns' logits. ``virtual``: tokens that the method puts
    before each row. ``looks_ahead``: what it says of a token depends on those after it.
    """

    packs: bool
    why_not: str
    head: Head | None
    slices_logits: bool
    virtual: int = 0
    looks_ahead: bool = False


def profile(model: Any, task: Task, slices_logits: bool, dtype: Any, virtual: int = 0, *, longest: int = 0) -> Profile:
    """Try the peft model ``model``, whose products are in ``dtype``, on two short rows of random ids; it puts
    ``virtual`` tokens before each. ``longest``: how many tokens the longest row has that it is to be trusted with.
    """
    model.eval()
    if not task.packs:
        return Profile(False, f"{task.name} pads its rows", None, False, virtual)
    base = model.get_base_model()
    rows = _rows(base)
    try:
        head = Head(found) if (found := plain_head(base)) is not None else None
    except (AttributeError, NotImplementedError):
        head = None
    if head is not None and not _is_plain(model, head, tensors(task.collate(rows, Layout(0)))["inputs"]):
        head = None
    if head is not None:
        from peftctl.fast.liger import fused_sum

        head = Head(head.module, fused_sum(head.weight))
    why_not = "its virtual tokens stand before each row"
    if not virtual:
        why_not = _why_not_packed(model, base, task, rows, dtype, longest)
    model.zero_grad(set_to_none=True)
    return Profile(not why_not, why_not, head, slices_logits, virtual, task.causal and looks_ahead(model))


def _rows(base: Any) -> list[Encoded]:
    """Two rows of random ids, all learned."""
    import numpy as np

    vocabulary = len(base.get_input_embeddings().weight)
    random = np.random.default_rng(SEED)
    return [Encoded(tuple(random.integers(0, vocabulary, n).tolist()), (1.0,) * n) for n in ROWS]


def _is_plain(model: Any, head: Head, inputs: Mapping[str, Any]) -> bool:
    import torch

    inputs = _on_device(model, inputs)
    with torch.no_grad():
        wanted = model(**inputs).logits
        found = torch.nn.functional.linear(head.hidden(model, inputs), head.weight)
    return near(found, wanted, head.weight.dtype)


def _why_not_packed(model: Any, base: Any, task: Task, rows: list[Encoded], dtype: Any, longest: int) -> str:
    """Why packed rows cannot be trusted, or "" where they gave what the rows give alone."""
    import torch

    config = base.config.get_text_config()
    windows = [window for name in WINDOWS if type(window := getattr(config, name, None)) is int]  # False is none
    if windows and longest > min(windows):
        return f"its attention sees {min(windows)} tokens, and rows are longer"
    try:
        alone = [_outcome(model, tensors(task.collate([row], Layout(0)))) for row in rows]
        packed = _said_to_be(longest, tensors(task.collate(rows, Layout(0, packed=True))))
        with packed_attention(base):
            logits, grads = _outcome(model, packed)
            _in_training(model, packed)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a probe: whatever a model's code makes of what it does not know is an answer
        return shorten(str(error).strip().split("\n")[0], LONGEST, placeholder=" ...") or type(error).__name__
    wanted = torch.cat([each for each, _ in alone], dim=1)
    if logits.shape != wanted.shape or not near(logits, wanted, dtype):
        return "rows that stand end to end see each other"
    summed = [sum(parts[1:], parts[0]) for parts in zip(*(grads for _, grads in alone), strict=True)]
    if not grads:
        return ""
    flat, flat_wanted = (torch.cat([each.flatten() for each in tensors]) for tensors in (grads, summed))
    # Two rows that see each other are off by their own size; 30 layers of bfloat16 by 8 % of it.
    if not near(flat, flat_wanted, dtype, config.num_hidden_layers):
        return "rows that stand end to end have other gradients than alone"
    return ""


def _said_to_be(longest: int, batch: Batch) -> Batch:
    """The batch as one whose longest row has so many tokens: attention with a shorter window tells."""
    told = {name: max(longest, batch["inputs"][name]) for name in ("max_length_q", "max_length_k")}
    return {**batch, "inputs": {**batch["inputs"], **told}}


def _outcome(model: Any, batch: Mapping[str, Any]) -> tuple[Any, list[Any]]:
    """Logits, and the gradients of everything that is trained for a sum over them with fixed random weights."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    logits = model(**_on_device(model, batch["inputs"])).logits
    ids = batch["inputs"]["input_ids"]
    generator = torch.Generator().manual_seed(SEED)
    table = torch.randn(logits.shape[-1], generator=generator).to(logits.device)
    # The weight of a position depends on its own token and the output's number alone, packed or not.
    scale = (ids % 7 + 1).to(logits.device, torch.float32) / 7
    total = ((logits.float() @ table) * scale).sum()
    found = torch.autograd.grad(total, trained, allow_unused=True) if trained else ()
    return logits.detach(), [
        torch.zeros_like(parameter) if grad is None else grad for parameter, grad in zip(trained, found, strict=True)
    ]


def _in_training(model: Any, batch: Mapping[str, Any]) -> None:
    """Run the batch as in training: some models' attention drops what it would not drop here, and says so."""
    import torch

    model.train()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            model(**_on_device(model, batch["inputs"]))
    finally:
        model.eval()


def _on_device(model: Any, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    from accelerate.utils import send_to_device

    moved: Mapping[str, Any] = send_to_device(dict(inputs), next(model.parameters()).device)
    return moved
