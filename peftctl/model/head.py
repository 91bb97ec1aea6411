"""The output head apart from the model: hidden states out, and the weight that would make logits of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Head:
    """A plain output head: a frozen linear layer without a bias, whose outputs are the model's logits as they are."""

    module: Any
    fused: Any = None  # ``fast.liger``'s sum, where there is one

    @property
    def weight(self) -> Any:
        """[vocabulary, width]."""
        return self.module.weight

    def hidden(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """What the head would read, in the shape of the logits but for the last dimension.

        ``model`` may be wrapped (by peft, by an adapter, by a process group): the call goes through all of it.
        """
        # Norms that are trained are float32, and so is what they put out: the head would read it in its own dtype.
        self.module.forward = lambda hidden: hidden.to(self.weight.dtype)
        try:
            return model(**inputs).logits
        finally:
            del self.module.forward

    def weighted_sum(
        self, hidden: Any, targets: Any, weights: Any, common: float | None, each: Any | None = None
    ) -> Any:
        """sum_i weights_i * loss_i, float32, of hidden states [tokens, width]. ``common``: the weights' value if they
        have one alone; ``each`` [tokens], where given, gets every token's loss.
        """
        from peftctl.fast import loss

        if self.fused and common is not None and each is None:
            return self.fused(hidden, self.weight, targets).float() * common
        return loss.weighted_sum(hidden, self.weight, targets, weights, each)


def plain_head(model: Any) -> Any:
    """The output head of a transformers model where it may be plain, else None; whether it is, a probe must show."""
    from torch import nn

    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None or head.weight.requires_grad:
        return None
    return head
