"""Batches: padding is masked, targets are the next ids, and nothing of a row is lost."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from peftctl.data.collate import Collator, pad_id
from peftctl.model.attention import packed_attention
from peftctl.model.head import Head, plain_head
from peftctl.objectives import OBJECTIVES
from peftctl.tasks import TASKS, Layout, tensors
from peftctl.text.tokens import Encoded
from tests import tiny

TASK = TASKS["causal_lm"]
ROWS = [
    Encoded((10, 11, 12, 13, 14), (0.0, 0.0, 1.0, 1.0, 0.0)),
    Encoded((20, 21, 22), (1.0, 0.0, 0.5)),
]


@pytest.mark.parametrize("slices", [True, False])
def test_a_batch_is_padded_on_the_right_and_masked(slices: bool) -> None:
    batch = TASK.collate(ROWS, Layout(9, slices))
    assert batch["inputs"]["input_ids"].tolist() == [[10, 11, 12, 13, 14], [20, 21, 22, 9, 9]]
    assert batch["inputs"]["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert ("logits_to_keep" in batch["inputs"]) is slices


def test_targets_are_the_ids_after_the_columns_that_some_row_learns_from() -> None:
    batch = TASK.collate(ROWS, Layout(9, True))
    assert batch["columns"].tolist() == [1, 2]
    assert batch["inputs"]["logits_to_keep"].tolist() == [1, 2]
    # The second row's first token is weighted, but nothing stands before it.
    assert batch["at"].tolist() == [0, 1, 2]
    assert batch["targets"].tolist() == [12, 13, 22]
    assert batch["weights"].tolist() == [1.0, 1.0, 0.5]
    assert batch["owners"].tolist() == [0, 0, 1]
    assert (batch["rows"], batch["count"]) == (2, 2.5)
    assert batch["count"] == sum(OBJECTIVES["cross_entropy"].count(row) for row in ROWS)


def test_packed_rows_stand_end_to_end_and_their_positions_begin_again() -> None:
    batch = TASK.collate(ROWS, Layout(9, True, packed=True))
    inputs = batch["inputs"]
    assert inputs["input_ids"].tolist() == [[10, 11, 12, 13, 14, 20, 21, 22]]
    assert inputs["position_ids"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert inputs["cu_seq_lens_q"].tolist() == inputs["cu_seq_lens_k"].tolist() == [0, 5, 8]
    assert inputs["max_length_q"] == 5
    assert inputs["logits_to_keep"].tolist() == [1, 2, 6]
    assert batch["targets"].tolist() == [12, 13, 22]
    assert batch["weights"].tolist() == [1.0, 1.0, 0.5]
    assert batch["owners"].tolist() == [0, 0, 1]


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("slices", [True, False])
def test_the_loss_of_a_batch_is_that_of_its_rows_alone(slices: bool, apart: bool, packed: bool) -> None:
    model = tiny.llama().eval().requires_grad_(False)
    objective = OBJECTIVES["cross_entropy"]
    wanted = 0.0
    right = []
    with torch.no_grad():
        for row in ROWS:
            logp = model(torch.tensor([row.ids])).logits[0].double().log_softmax(-1)
            wanted += sum(-row.weights[at] * float(logp[at - 1, row.ids[at]]) for at in range(1, len(row)))
            right.append(
                sum(row.weights[at] * float(logp[at - 1].argmax() == row.ids[at]) for at in range(1, len(row)))
            )
        layout = Layout(9, slices, packed, head=Head(plain_head(model)) if apart else None)
        with packed_attention(model) if packed else nullcontext():
            made = objective.step(model, tensors(TASK.collate(ROWS, layout)))
            metrics = TASK.metrics(model, tensors(TASK.collate(ROWS, layout)))
    assert made.count == 2.5
    assert float(made.sum) == pytest.approx(wanted, rel=1e-5)
    assert sum(metrics["loss"]) == pytest.approx(wanted, rel=1e-5)
    assert list(metrics["right"]) == right
    assert list(metrics["count"]) == [sum(row.weights[1:]) for row in ROWS]


def test_what_is_padded_with_does_not_matter() -> None:
    model = tiny.llama().eval()
    with torch.no_grad():
        sums = [
            OBJECTIVES["cross_entropy"].step(model, tensors(TASK.collate(ROWS, Layout(pad, True)))).sum
            for pad in (0, 7)
        ]
    assert torch.equal(sums[0], sums[1])


def test_rows_are_padded_with_what_the_tokenizer_has() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = "<|end|>"
    assert pad_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|end|>")
    tokenizer.pad_token = None
    assert pad_id(tokenizer) == tokenizer.eos_token_id
    tokenizer.eos_token = None
    assert pad_id(tokenizer) == 0


def test_a_collator_puts_every_tensor_on_its_device() -> None:
    batch = Collator(TASK, tiny.tokenizer(), Layout(0, True), 64, torch.device("meta"))(ROWS)
    tensors = [*batch["inputs"].values(), batch["targets"], batch["weights"], batch["columns"], batch["at"]]
    assert {tensor.device.type for tensor in tensors if isinstance(tensor, torch.Tensor)} == {"meta"}


def test_figures_of_a_data_set_are_ratios_of_sums() -> None:
    made = TASK.summarise({"loss": 3.0, "right": 1.0, "count": 4.0})
    assert made["loss"] == 0.75
    assert made["perplexity"] == pytest.approx(2.718281828459045**0.75)
    assert made["token_accuracy"] == 0.25
    assert TASK.summarise({"loss": 1e9, "right": 0.0, "count": 1.0})["perplexity"] < float("inf")
