"""Prompt tuning: vectors before the text. Lester et al. 2021, https://arxiv.org/abs/2104.08691

    [p_1 ... p_n, e(x_1) ... e(x_m)]        p [tokens, width], trained; e the frozen embedding

Nothing in the model changes; each row costs ``tokens`` more positions, in training and in use.

Trains tokens * width. It cannot be merged: in use each text is that many tokens longer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from peftctl.methods import start_text
from peftctl.methods.contract import Anatomy, BaseName, DataFacts, MethodSettings, peft
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
    text: str | None = Field(
        None,
        min_length=1,
        description="With `init: text`, the text to start from, at most `tokens` long; a shorter one is repeated.",
    )


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

    def contradictions(self, settings: PromptTuningSettings) -> Iterator[tuple[str, str, str]]:
        return start_text.contradictions(settings.init, settings.text)

    def config(
        self, model: Any, settings: PromptTuningSettings, targets: Sequence[str], facts: DataFacts
    ) -> Mapping[str, Any]:
        # Where a model reads and writes, PEFT makes vectors for both, and uses those for reading alone.
        fields: dict[str, Any] = {"prompt_tuning_init": INITS[settings.init], "num_transformer_submodules": 1}
        if settings.text is not None:
            start_text.ids(model, settings.text, settings.tokens)  # PEFT would cut what does not fit
            fields |= {"prompt_tuning_init_text": settings.text, "tokenizer_name_or_path": model.config._name_or_path}
        return fields

    def parameters(self, settings: PromptTuningSettings, anatomy: Anatomy) -> int:
        return settings.tokens * anatomy.width

    def virtual_tokens(self, settings: Any) -> int:
        count: int = settings.tokens
        return count

    def save(self, model: Any, settings: Any, base: BaseName, folder: Path) -> None:
        for config in model.peft_config.values():
            if config.tokenizer_name_or_path:  # by the base's name, as others have it, and not where it lies here
                config.tokenizer_name_or_path = base.name
        super().save(model, settings, base, folder)


METHOD = PromptTuning()
