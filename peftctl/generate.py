"""Text from a model: greedy or sampled, piece by piece as it is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from peftctl.errors import UsageError
from peftctl.text.template import end_of_turn


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


def generate(
    model: Any, tokenizer: Any, prompt: Sequence[int], sampling: Sampling, heard: Callable[[str], None] | None = None
) -> str:
    """What the model writes after the ids of ``prompt``, stop token left out. ``heard`` gets it piece by piece."""
    streamer = _streamer(tokenizer, heard) if heard else None
    return _texts(model, tokenizer, [prompt], sampling, streamer)[0]


def generate_all(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[str]:
    """What the model writes after each of ``prompts``, which are of one length, the likeliest token each time."""
    return _texts(model, tokenizer, prompts, Sampling(max_new_tokens))


def _texts(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], sampling: Sampling, streamer: Any = None
) -> list[str]:
    import torch

    ids = torch.tensor([list(prompt) for prompt in prompts], device=model.device)
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
            streamer=streamer,
            **choice,
        )
    # What reads one text and writes another gives back the latter alone.
    start = 0 if model.config.is_encoder_decoder else ids.shape[1]
    return [tokenizer.decode(row[start:], skip_special_tokens=True) for row in made]


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
