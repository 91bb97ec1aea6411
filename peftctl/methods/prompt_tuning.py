"""Prompt tuning: vectors before the text. Lester et al. 2021, https://arxiv.org/abs/2104.08691

    [p_1 ... p_n, e(x_1) ... e(x_m)]        p [tokens, width], trained; e the frozen embedding

Nothing in the model changes; each row costs ``tokens`` more positions, in training and in use.

Trains tokens * width. It cannot be merged: in use each text is that many tokens longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from peftctl.errors import UsageError
from peftctl.methods.contract import Anatomy, DataFacts, MethodSettings, peft
from peftctl.methods.peft_method import PeftMethod


class PromptTuningSettings(MethodSettings):
    """Settings of prompt tuning."""

    name: Literal["prompt_tuning"] = "prompt_tuning"
    tokens: int = Field(
        20,
        ge=1,
        le=4096,
        description="Vectors that are put before each row.",
        json_schema_extra=peft("num_virtual_tokens"),
    )
    init: Literal["vocabulary", "text", "random"] = Field(
        "vocabulary",
        description="What the vectors are at the start: embeddings of tokens drawn from the vocabulary, those of "
        "`text`, or random numbers, which lie far from any word and learn slowly.",
    )
    text: str | None = Field(None, min_length=1, description="With `init: text`, the text to start from.")


INITS = {"vocabulary": "SAMPLE_VOCAB", "text": "TEXT", "random": "RANDOM"}


@dataclass(frozen=True)
class PromptTuning(PeftMethod):
    name: str = "prompt_tuning"
    peft_type: str = "PROMPT_TUNING"
    settings: type[MethodSettings] = PromptTuningSettings
    category: Literal["addition", "selection", "reparameterisation"] = "addition"
    # The paper trains at 0.3 with Adafactor's relative steps. PEFT's method comparison lost at 1e-4 (5.7 %) and did
    # best with vocabulary vectors at 1e-3 (34.3 %); higher rates were not tried there.
    learning_rate: float = 1e-2

    def config(
        self, model: Any, settings: PromptTuningSettings, targets: Sequence[str], facts: DataFacts
    ) -> Mapping[str, Any]:
        if (settings.text is not None) != (settings.init == "text"):
            raise UsageError("method.text: is what `init: text` starts from, and needed there alone")
        fields: dict[str, Any] = {"prompt_tuning_init": INITS[settings.init]}
        if settings.init == "text":
            fields |= {"prompt_tuning_init_text": settings.text, "tokenizer_name_or_path": model.config._name_or_path}
        return fields

    def parameters(self, settings: PromptTuningSettings, anatomy: Anatomy) -> int:
        return settings.tokens * anatomy.width

    def virtual_tokens(self, settings: Any) -> int:
        count: int = settings.tokens
        return count


METHOD = PromptTuning()
