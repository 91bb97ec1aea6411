"""Text from a model: greedy or sampled, piece by piece as it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peftctl.errors import UsageError
from peftctl.example import Turn
from peftctl.text import chat
from peftctl.text.template import end_of_turn
from peftctl.text.tokens import prompt_ids


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 takes the likeliest token; above it tokens are drawn, among the likeliest ``top_p`` mass.

    Raises UsageError where a number is out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, fine, allowed in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature >= 0, "at least 0"),
            ("top_p", 0 <= self.top_p <= 1, "0 to 1"),
            ("seed", 0 <= self.seed < 2**32, "0 to 4294967295"),
        ):
            if not fine:
                raise UsageError(f"{name}: out of range (found {getattr(self, name)}); allowed: {allowed}")


def encode_prompt(prompt: str | Sequence[Turn], tokenizer: Any) -> list[int]:
    """Ids of a plain prompt, or of turns with the template's generation prompt, as training saw them."""
    if isinstance(prompt, str):
        return prompt_ids(prompt, tokenizer, whole=True)
    return prompt_ids(chat.render(prompt, tokenizer, generation_prompt=True), tokenizer, whole=False)


def generate(
    model: Any, tokenizer: Any, prompt: Sequence[int], sampling: Sampling, heard: Callable[[str], None] | None = None
) -> str:
    """What the model writes after the ids of ``prompt``, stop token left out. ``heard`` gets it piece by piece."""
    import torch

    ids = torch.tensor([list(prompt)], device=model.device)
    choice: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        torch.manual_seed(sampling.seed)
        choice = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
    model.eval()
    with torch.no_grad():
        made = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=stop_ids(model.generation_config, tokenizer),
            pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
            streamer=_streamer(tokenizer, heard) if heard else None,
            **choice,
        )
    text: str = tokenizer.decode(made[0, len(prompt) :], skip_special_tokens=True)
    return text


def stop_ids(generation_config: Any, tokenizer: Any) -> list[int]:
    """Every id that ends a text: the tokenizer's, the model's own, and the one that ends a turn of its template."""
    stops: set[int] = set()
    configured = generation_config.eos_token_id
    stops.update([configured] if isinstance(configured, int) else configured or [])
    if tokenizer.eos_token_id is not None:
        stops.add(tokenizer.eos_token_id)
    if (end := end_of_turn(tokenizer)) is not None:
        stops.add(end)
    return sorted(stops)


def _streamer(tokenizer: Any, heard: Callable[[str], None]) -> Any:
    from transformers import TextStreamer

    class Streamer(TextStreamer):  # type: ignore[misc]  # transformers is untyped
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            heard(text)

    return Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
