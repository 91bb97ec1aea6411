"""One job of a peer, in the peer's own environment: TRL's SFTTrainer, or Hugging Face's Trainer with PEFT.

    python scripts/benchmark/peers.py JOB.json RESULT.json

The job names model, rows, batch and settings (see ``jobs.py``); the result holds what each update took. Peers are
used as their documentation shows, with nothing in the way but a callback that reads clocks.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    import torch

    torch.set_num_threads(job["threads"])
    result = {"trl": trl_sft, "trainer": hf_trainer, "trl_rows": trl_rows}[job["tool"]](job)
    Path(sys.argv[2]).write_text(json.dumps(result), encoding="utf-8")


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak_gpu_bytes() -> int:
    import torch

    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0


def clock_callback(job: dict[str, Any]) -> Any:
    """A callback that notes wall and CPU seconds at the end of every update."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ticks: list[tuple[float, float]] = []
            self.first_step = 0.0

        def tick(self) -> None:
            self.ticks.append((time.perf_counter(), time.process_time()))

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.tick()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.tick()
            self.first_step = self.first_step or time.time() - job["spawned"]

    return Clock()


def figures(clock: Any, trainer: Any, job: dict[str, Any], floor: int) -> dict[str, Any]:
    """The result: per update seconds, peaks, losses, and the loss on held-out rows where the job asks for it."""
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(clock.ticks)]
    peak = peak_bytes()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    held_out = held_out_loss(trainer.model, trainer.processing_class, job) if job["eval"] else None
    return {
        "wall_s": [wall for wall, _ in steps],
        "cpu_s": [cpu for _, cpu in steps],
        "losses": losses,
        "peak_bytes": peak,
        "floor_bytes": floor,
        "peak_gpu_bytes": peak_gpu_bytes(),
        "first_step_s": clock.first_step,
        "eval_loss": held_out,
    }


def held_out_loss(model: Any, tokenizer: Any, job: dict[str, Any]) -> float:
    """Mean loss of the held-out tokens that are learned, row by row in float32 from the model's own logits."""
    import torch

    model.eval()
    total, count = 0.0, 0
    for line in Path(job["eval_rows"]).read_text("utf-8").splitlines():
        messages = json.loads(line)["messages"]
        ids = encoded(tokenizer, messages)[: job["max_length"]]
        first = len(encoded(tokenizer, messages[:-1], prompt=True)) if job["assistant_only"] else 1
        batch = torch.tensor([ids])
        with torch.no_grad():
            logits = model(input_ids=batch).logits[0, first - 1 : -1].float()
        total += float(torch.nn.functional.cross_entropy(logits, batch[0, first:], reduction="sum"))
        count += len(ids) - first
    return total / count


def encoded(tokenizer: Any, messages: list[dict[str, str]], *, prompt: bool = False) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def rows_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(job["rows"]).read_text("utf-8").splitlines()]


def arguments(job: dict[str, Any]) -> dict[str, Any]:
    """The training arguments that both trainers share, at the job's batch, schedule and number types."""
    return {
        "output_dir": job["folder"],
        "max_steps": job["updates"],
        "per_device_train_batch_size": job["batch"],
        "gradient_accumulation_steps": job["rows_per_update"] // job["batch"],
        "learning_rate": job["learning_rate"],
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1.0,
        "seed": job["seed"],
        "use_cpu": not torch_has_gpu(),
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "dataloader_pin_memory": False,
        "bf16": job["dtype"] == "autocast",
    }


def torch_has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def lora(job: dict[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        task_type="CAUSAL_LM", r=job["rank"], lora_alpha=2 * job["rank"], target_modules="all-linear", lora_dropout=0.0
    )


def load(job: dict[str, Any]) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    dtype = torch.bfloat16 if job["dtype"] == "bfloat16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype)
    return model, AutoTokenizer.from_pretrained(job["model"])


def trl_sft(job: dict[str, Any]) -> dict[str, Any]:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    floor = peak_bytes()
    model, tokenizer = load(job)
    rows = rows_of(job)
    if job["assistant_only"]:
        rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
    settings = {
        **arguments(job),
        "max_length": job["max_length"],
        "packing": job["packing"],
        "gradient_checkpointing": job["gradient_checkpointing"],
        "shuffle_dataset": False,
    }
    if job["defaults"]:
        ours = ("per_device_train_batch_size", "gradient_accumulation_steps", "gradient_checkpointing", "bf16")
        settings = {key: value for key, value in settings.items() if key not in ours}
    config = SFTConfig(**settings)
    clock = clock_callback(job)
    trainer = SFTTrainer(
        model,
        config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora(job),
        callbacks=[clock],
    )
    in_order(trainer)
    trainer.train()
    return figures(clock, trainer, job, floor)


def trl_rows(job: dict[str, Any]) -> dict[str, Any]:
    """How long TRL takes to make its training rows of chats: template, ids, mask, packing. No model is trained."""
    from datasets import Dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    smallest = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **smallest))
    rows = rows_of(job)
    if job["assistant_only"]:
        rows = [{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows]
    data = Dataset.from_list(rows)
    config = SFTConfig(
        output_dir=job["folder"], max_length=job["max_length"], packing=True, use_cpu=True, bf16=False,
        report_to="none", disable_tqdm=True,
    )  # fmt: skip
    wall, cpu = time.perf_counter(), time.process_time()
    SFTTrainer(model, config, train_dataset=data, processing_class=tokenizer)
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu, "rows": len(rows)}


def hf_trainer(job: dict[str, Any]) -> dict[str, Any]:
    import torch
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments

    floor = peak_bytes()
    model, tokenizer = load(job)
    model = get_peft_model(model, lora(job))
    rows = []
    for row in rows_of(job):
        ids = encoded(tokenizer, row["messages"])[: job["max_length"]]
        first = len(encoded(tokenizer, row["messages"][:-1], prompt=True)) if job["assistant_only"] else 0
        rows.append({"input_ids": ids, "labels": [-100] * first + ids[first:]})

    def collate(features: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        length = max(len(feature["input_ids"]) for feature in features)
        batch: dict[str, list[list[int]]] = {"input_ids": [], "labels": [], "attention_mask": []}
        for feature in features:
            missing = length - len(feature["input_ids"])
            batch["input_ids"].append(feature["input_ids"] + [tokenizer.pad_token_id] * missing)
            batch["labels"].append(feature["labels"] + [-100] * missing)
            batch["attention_mask"].append([1] * (length - missing) + [0] * missing)
        return {key: torch.tensor(value) for key, value in batch.items()}

    clock = clock_callback(job)
    trainer = Trainer(
        model,
        TrainingArguments(**arguments(job), remove_unused_columns=False),
        train_dataset=rows,
        data_collator=collate,
        processing_class=tokenizer,
        callbacks=[clock],
    )
    in_order(trainer)
    trainer.train()
    return figures(clock, trainer, job, floor)


def in_order(trainer: Any) -> None:
    """Rows as they stand in the file, so that every tool takes the same rows for the same update."""
    from torch.utils.data import SequentialSampler

    trainer._get_train_sampler = lambda dataset=None: SequentialSampler(dataset or trainer.train_dataset)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
