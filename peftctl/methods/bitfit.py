"""BitFit: the biases alone. Ben Zaken et al. 2021, https://arxiv.org/abs/2106.10199

    h = W x + b        b [outputs], trained; W frozen

For models that have biases (GPT-2, BERT, Qwen2's queries, keys and values); Llama and its kin have none. The shifts of
LayerNorm count among them, as in the paper.

Trains every bias. It is saved as those vectors, which peftctl puts back; merged it costs nothing in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from peftctl.errors import UsageError
from peftctl.methods.contract import MethodSettings
from peftctl.methods.selection import Selection


class BitfitSettings(MethodSettings):
    """Settings of BitFit: it has none."""

    name: Literal["bitfit"] = "bitfit"


@dataclass(frozen=True)
class Bitfit(Selection):
    name: str = "bitfit"
    peft_type: str = ""
    settings: type[MethodSettings] = BitfitSettings
    # The paper searches 1e-4 to 1e-3 on GLUE (its appendix A.2).
    learning_rate: float = 1e-3

    def selects(self, model: Any, settings: Any) -> Sequence[str]:
        names = [name for name, _ in model.named_parameters() if name.rsplit(".", 1)[-1] == "bias"]
        if not names:
            raise UsageError(
                f"method: bitfit has nothing to train, since {type(model).__name__} has no biases",
                "ln_tuning trains as few parameters, and this model has them",
            )
        return names


METHOD = Bitfit()
