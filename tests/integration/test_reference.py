"""Our loop beside Hugging Face's Trainer: the same rows in the same order, the same schedule and optimizer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from peftctl.data import batches
from peftctl.train.optim import schedule
from tests import jobs, tiny

STEPS, BATCH, RATE = 12, 4, 2e-3


def trainer_losses(base: Path, folder: Path, order: list[int], rows: list[dict[str, list[int]]]) -> list[float]:
    """The Trainer's loss of each step over ``rows`` in ``order``, with a LoRA made from the same random numbers."""
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import Sampler
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    from peftctl.data.order import derived_seed
    from peftctl.model import targets

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    names = list(targets.resolve(model, ["all-linear"]))
    torch.manual_seed(derived_seed(0, 0))
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=names))

    class Fixed(Sampler[int]):
        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(order)

        def __len__(self) -> int:
            return len(order)

    class Ordered(Trainer):
        def _get_train_sampler(self, *_: object) -> Sampler[int]:
            return Fixed()

    def collate(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        length = max(len(feature["input_ids"]) for feature in features)
        out: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for feature in features:
            missing = length - len(feature["input_ids"])
            out["input_ids"].append(feature["input_ids"] + [0] * missing)
            out["labels"].append(feature["labels"] + [-100] * missing)
            out["attention_mask"].append([1] * (length - missing) + [0] * missing)
        return {key: torch.tensor(value) for key, value in out.items()}

    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=RATE, weight_decay=0.0, fused=True
    )
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule("cosine", 0.03, STEPS))
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, gradient_accumulation_steps=BATCH // 2,
        max_steps=STEPS, max_grad_norm=1.0, logging_steps=1, report_to=[], save_strategy="no", use_cpu=True,
        disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = Ordered(model, arguments, data_collator=collate, train_dataset=rows, optimizers=(optimizer, rate))
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.quick
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_trajectory_is_that_of_the_hugging_face_trainer(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    from peftctl.example import Conversation, Turn
    from peftctl.tasks import TASKS

    chats = tiny.chats(24)
    tiny.jsonl(tmp_path / "train.jsonl", chats)
    _, events = jobs.train(
        tmp_path,
        tiny_model,
        train={"epochs": 2, "batch_size": BATCH, "learning_rate": RATE, "micro_batch_tokens": 64},
        method={"alpha": 8.0},
    )
    ours = torch.tensor(jobs.losses(events), dtype=torch.float64)
    assert len(ours) == STEPS

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    rows = []
    for chat in chats:
        turns = tuple(Turn(m["role"], m["content"], float(m["role"] == "assistant")) for m in chat["messages"])
        ((row,),) = TASKS["causal_lm"].encode([Conversation(turns)], tokenizer)
        labels = [token if weight else -100 for token, weight in zip(row.ids, row.weights, strict=True)]
        rows.append({"input_ids": list(row.ids), "labels": labels})
    plan = batches.plan(24, BATCH, 0, epochs=2, max_steps=None)
    order = [index for step in range(STEPS) for index in plan.indices(step)]
    theirs = torch.tensor(trainer_losses(tiny_model, tmp_path / "hf", order, rows), dtype=torch.float64)

    # The same sums in another order: a few units in float32's last place each update (see test_train).
    bound = STEPS * 32 * torch.finfo(torch.float32).eps * ours.max()
    assert (ours - theirs).abs().max() <= bound
    assert (ours[0] - ours[-1]) > 1000 * bound  # and the trajectory goes somewhere
