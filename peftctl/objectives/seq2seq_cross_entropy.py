"""Next-token cross-entropy of what a decoder writes, given what its encoder has read.

    loss = sum_i -log softmax(logits_i)[target_i] / targets

The model's own loss is not used: it is a mean over one micro-batch, whatever count it is handed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.objectives.contract import Loss, of_rows
from peftctl.text.tokens import IGNORED


@dataclass(frozen=True)
class Seq2SeqCrossEntropy:
    name: str = "seq2seq_cross_entropy"
    splittable: bool = True

    def count(self, row: Any) -> float:
        """The weight of the row's targets: one for each token that is written."""
        return math.fsum(row.weights)

    def step(self, model: Any, batch: Mapping[str, Any], *, by_row: bool = False) -> Loss:
        """``labels`` [rows, length], among the inputs too, are what is to be written, IGNORED behind its end."""
        losses = self.each(self.logits(model, batch["inputs"]), batch)
        return of_rows(losses.sum(1), batch, by_row=by_row, each=(batch["labels"] != IGNORED).sum(1))

    def logits(self, model: Any, inputs: Mapping[str, Any]) -> Any:
        """[rows, length, vocabulary], float32: what the decoder makes of each beginning of ``labels``."""
        from accelerate.utils import extract_model_from_parallel

        read = {name: value for name, value in inputs.items() if name != "labels"}
        # The model's own way to put its start token in front; handed labels it would work out a loss besides.
        whole = extract_model_from_parallel(model)
        base = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
        before = base.prepare_decoder_input_ids_from_labels(labels=inputs["labels"])
        return model(**read, decoder_input_ids=before, use_cache=False).logits.float()

    def each(self, logits: Any, batch: Mapping[str, Any]) -> Any:
        """The loss of each target, [rows, length], 0 where there is none."""
        from torch.nn.functional import cross_entropy

        labels = batch["labels"]
        losses = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
        return losses.reshape(labels.shape)


OBJECTIVE = Seq2SeqCrossEntropy()
