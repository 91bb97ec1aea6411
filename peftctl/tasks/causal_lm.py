"""Text generation: the next token from those before it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from peftctl.example import Conversation, Example, Segments
from peftctl.objectives.cross_entropy import target_logits, token_losses
from peftctl.tasks.contract import Batch
from peftctl.text import chat, tokens
from peftctl.text.tokens import Encoded


@dataclass(frozen=True)
class CausalLM:
    name: str = "causal_lm"
    peft_type: str = "CAUSAL_LM"
    accepts: tuple[type[Example], ...] = (Conversation, Segments)
    objective: str = "cross_entropy"

    def model_class(self) -> Any:
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def encode(self, example: Example, tokenizer: Any) -> Encoded:
        if isinstance(example, Conversation):
            example = chat.segments(example, tokenizer)
        return tokens.encode(example, tokenizer)

    def collate(self, rows: Sequence[Encoded], pad_id: int, *, slices_logits: bool) -> Batch:
        """Right-padded rows, and the columns at which some row has a target.

        ``inputs``     input_ids, attention_mask [rows, length]; logits_to_keep [positions]
        ``positions``  [positions], the columns whose logits predict a learned token
        ``targets``    [rows, positions], the id that follows each of those columns
        ``weights``    [rows, positions], float32, its loss weight
        ``count``      the sum of the weights
        """
        import torch

        length = max(len(row) for row in rows)
        ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        weights = torch.zeros((len(rows), length), dtype=torch.float32)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row.ids)
            mask[index, : len(row)] = 1
            weights[index, : len(row)] = torch.tensor(row.weights)
        weights[:, 0] = 0.0
        positions = weights.any(dim=0).nonzero().squeeze(1) - 1
        inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
        if slices_logits:
            inputs["logits_to_keep"] = positions
        targets, weights = ids[:, positions + 1], weights[:, positions + 1]
        count = float(weights.sum(dtype=torch.float64))
        return {"inputs": inputs, "positions": positions, "targets": targets, "weights": weights, "count": count}

    def metrics(self, model: Any, batch: Batch) -> Mapping[str, Sequence[float]]:
        """For each row the loss and the rightly guessed learned tokens, both by weight, and the weight."""
        logits, weights = target_logits(model, batch), batch["weights"]
        of_tokens = {
            "loss": token_losses(logits, batch) * weights,
            "right": (logits.argmax(-1) == batch["targets"]) * weights,
            "count": weights,
        }
        return {name: values.double().sum(dim=1).tolist() for name, values in of_tokens.items()}

    def summarise(self, sums: Mapping[str, float]) -> Mapping[str, float]:
        loss = sums["loss"] / sums["count"]
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "token_accuracy": sums["right"] / sums["count"],
        }


TASK = CausalLM()
