"""(IA)³: infused adapter by inhibiting and amplifying inner activations. Liu et al. 2022, https://arxiv.org/abs/2205.05638

    keys, values:  h = l * (W x)      l [outputs]
    feed-forward:  h = W (l * x)      l [inputs]

Every l starts at one, so training starts from the base model's own outputs. Merged, it costs nothing.

Trains outputs for each key and value layer, inputs for each feed-forward one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from peftctl.errors import UsageError
from peftctl.methods.contract import Anatomy, DataFacts, MethodSettings, Targets
from peftctl.methods.peft_method import PeftMethod, transposed

# Layers by what they do, over the families of transformers: (IA)³ is defined by role. Where keys and values come out of
# one layer, its whole output is scaled, queries included, as PEFT's own mapping does.
KEYS_AND_VALUES = re.compile(
    r"(^|\.)(k|v|key|value|k_proj|v_proj|k_lin|v_lin|key_proj|value_proj|query_key_value|qkv_proj|attn\.c_attn|Wqkv)$"
)
FEED_FORWARD = re.compile(
    r"(^|\.)(down_proj|fc2|wo|w2|lin2|fc_out|dense_4h_to_h|mlp\.(c_proj|Wo)|\d+\.output\.dense|ffn_output)$"
)


class Ia3Settings(MethodSettings):
    """Settings of (IA)³."""

    name: Literal["ia3"] = "ia3"
    targets: Targets | None = Field(
        None,
        description="Which layers are scaled, as for LoRA. Default: keys, values and the second layer of each "
        "feed-forward block, as the paper has it; keys and values alone where that block is experts in one parameter.",
    )
    feedforward: Annotated[tuple[str, ...], Field(strict=False)] | None = Field(
        None,
        description="Which of the targets scale their inputs, by name, where the others scale their "
        "outputs. Default: the second layer of each feed-forward block.",
    )

    @property
    def wanted(self) -> tuple[str, ...] | None:
        return self.targets


@dataclass(frozen=True)
class Ia3(PeftMethod):
    name: str = "ia3"
    peft_type: str = "IA3"
    settings: type[MethodSettings] = Ia3Settings
    category: Literal["addition", "selection", "reparameterisation"] = "addition"
    # The paper's T-Few trains its vectors at 3e-3.
    learning_rate: float = 3e-3

    def choose(self, model: Any) -> Sequence[str]:
        """Keys, values and second feed-forward layers, but for those that are experts in one parameter.

        Raises UsageError where the model calls them something else.
        """
        names = _linear(model)
        experts = any(parameter.dim() == 3 for parameter in model.parameters())
        for wanted in (KEYS_AND_VALUES,) if experts else (KEYS_AND_VALUES, FEED_FORWARD):
            if not any(wanted.search(name) for name in names):
                raise UsageError(
                    f"method.targets: ia3 does not know the keys, values and feed-forward layers of "
                    f"{type(model).__name__}",
                    f"name them as targets, and the feed-forward ones as feedforward; linear layers here: "
                    f"{', '.join(sorted({name.rsplit('.', 1)[-1] for name in names}))}",
                )
        return [name for name in names if KEYS_AND_VALUES.search(name) or FEED_FORWARD.search(name)]

    def config(self, model: Any, settings: Ia3Settings, targets: Sequence[str], facts: DataFacts) -> Mapping[str, Any]:
        for entry in settings.feedforward or ():
            if not any(_is(entry, name) for name in targets):
                raise UsageError(f"method.feedforward: {entry!r} is none of the targets")
        return {
            "feedforward_modules": [name for name in targets if _feeds_forward(name, settings)],
            "fan_in_fan_out": transposed(model, targets),
        }

    def parameters(self, settings: Ia3Settings, anatomy: Anatomy) -> int:
        return sum(
            inputs if _feeds_forward(name, settings) else outputs for name, (inputs, outputs) in anatomy.targets.items()
        )


def _feeds_forward(name: str, settings: Ia3Settings) -> bool:
    if settings.feedforward is None:
        return bool(FEED_FORWARD.search(name))
    return any(_is(entry, name) for entry in settings.feedforward)


def _is(entry: str, name: str) -> bool:
    return name == entry or name.endswith(f".{entry}")


def _linear(model: Any) -> list[str]:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


METHOD = Ia3()
