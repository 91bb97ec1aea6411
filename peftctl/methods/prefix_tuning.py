"""Prefix tuning: keys and values before the text, in every layer. Li and Liang 2021, https://arxiv.org/abs/2101.00190

    attention over [K_prefix, K(x)] and [V_prefix, V(x)]        [tokens, layers * 2 * key width], trained
    with ``hidden``: they are W2 tanh(W1 e)                     e [tokens, key width]; key width -> hidden -> theirs

Each row's attention costs ``tokens`` more positions, and the text's own come after them. The network of the second
line is not needed afterwards: what is saved is what it makes.

Trains tokens * layers * 2 * key width, or the network and its inputs. It cannot be merged: in use the cache holds that
many tokens more, and text is made with a cache always.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from peftctl.methods import continued, prefix_cache, start_text
from peftctl.methods.contract import Anatomy, DataFacts, MethodSettings, peft
from peftctl.methods.peft_method import PeftMethod


class PrefixTuningSettings(MethodSettings):
    """Settings of prefix tuning."""

    name: Literal["prefix_tuning"] = "prefix_tuning"
    tokens: int = Field(
        20,
        ge=1,
        le=4096,
        description="Keys and values that stand before each row's.",
        json_schema_extra=peft("num_virtual_tokens"),
    )
    init: Literal["zero", "text", "random"] = Field(
        "zero",
        description="What keys and values are at the start: zero, those that the model has for `text`, or random "
        "numbers, which disturb the model at first.",
    )
    text: str | None = Field(
        None,
        min_length=1,
        description="With `init: text`, the text to start from, at most `tokens` long; a shorter one is repeated. An "
        "instruction for the task does well.",
    )
    hidden: int | None = Field(
        None,
        ge=1,
        description="Inner width of a network that makes the keys and values while training, as in the paper. "
        "Default: they are trained themselves.",
        json_schema_extra=peft("encoder_hidden_size"),
    )


@dataclass(frozen=True)
class PrefixTuning(PeftMethod):
    name: str = "prefix_tuning"
    peft_type: str = "PREFIX_TUNING"
    settings: type[MethodSettings] = PrefixTuningSettings
    category: Literal["addition", "selection", "reparameterisation"] = "addition"
    # PEFT's method comparison, at this rate: 41.6 % from an instruction of 50 tokens, 35.8 % from 200 zeros; and from
    # 200 random ones, at 1e-3, 18.6 %.
    learning_rate: float = 5e-3

    def contradictions(self, settings: PrefixTuningSettings) -> Iterator[tuple[str, str, str]]:
        yield from start_text.contradictions(settings.init, settings.text)
        if settings.init == "text" and settings.hidden is not None:
            yield "init", "a text's keys and values cannot be what a network makes; leave out hidden", ""

    def config(
        self, model: Any, settings: PrefixTuningSettings, targets: Sequence[str], facts: DataFacts
    ) -> Mapping[str, Any]:
        return {
            "init_weights": "zero" if settings.init == "zero" else None,
            "prefix_projection": settings.hidden is not None,
        }

    def build(self, model: Any, settings: Any, targets: Sequence[str], peft_type: str, facts: DataFacts) -> Any:
        prefix_cache.check(model)
        if settings.text is None:
            return _with_cache(super().build(model, settings, targets, peft_type, facts))
        import torch
        from peft import initialize_kv_prefix_from_past_key_values

        ids = torch.tensor([start_text.ids(model, settings.text, settings.tokens)], device=model.device)
        with torch.no_grad():
            cache = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values
        made = super().build(model, settings, targets, peft_type, facts)
        initialize_kv_prefix_from_past_key_values(made, past_key_values=cache, num_virtual_tokens=settings.tokens)
        return _with_cache(made)

    def load(self, model: Any, settings: Any, folder: Path) -> Any:
        return _with_cache(super().load(model, settings, folder))

    def start_clash(self, settings: PrefixTuningSettings) -> tuple[str, str, str] | None:
        if settings.hidden is None:
            return None
        problem = "prefix_tuning keeps what its network made, and not the network, so no run can go on from another"
        return continued.SETTING, problem, "a start of its own, or runs without method.hidden"

    def parameters(self, settings: PrefixTuningSettings, anatomy: Anatomy) -> int:
        made, hidden = anatomy.layers * 2 * anatomy.key_width, settings.hidden
        if hidden is None:
            return settings.tokens * made
        return settings.tokens * anatomy.key_width + (anatomy.key_width + 1) * hidden + (hidden + 1) * made

    def positions(self, settings: Any) -> int:
        count: int = settings.tokens
        return count


def _with_cache(made: Any) -> Any:
    """Have text made with a cache whoever asks: a prefix lives in one, and without it some models of PEFT's fail."""
    plain = made.generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **{**kwargs, "use_cache": True})

    made.generate = generate
    return made


METHOD = PrefixTuning()
