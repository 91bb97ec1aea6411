"""Words for settings in other tools' recipes, and ours for them: people bring their habits along.

From the configuration keys of Hugging Face's TrainingArguments, PEFT's LoraConfig, TRL, axolotl and LLaMA-Factory.
"""

from __future__ import annotations

OURS = {
    "adapter": "method.name",
    "base_model": "model.name",
    "bf16": "model.dtype",
    "cutoff_len": "data.max_length",
    "dataset": "data.train",
    "datasets": "data.train",
    "finetuning_type": "method.name",
    "gradient_accumulation_steps": "train.micro_batch_tokens",
    "logging_steps": "train.log_every",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "lora_r": "method.rank",
    "lora_rank": "method.rank",
    "lora_target": "method.targets",
    "lora_target_modules": "method.targets",
    "lr_scheduler": "train.schedule",
    "lr_scheduler_type": "train.schedule",
    "max_length": "data.max_length",
    "max_seq_length": "data.max_length",
    "micro_batch_size": "train.micro_batch_tokens",
    "model_name_or_path": "model.name",
    "num_epochs": "train.epochs",
    "num_train_epochs": "train.epochs",
    "optim": "train.optimizer",
    "output_dir": "output",
    "per_device_train_batch_size": "train.batch_size",
    "r": "method.rank",
    "report_to": "track.to",
    "sequence_len": "data.max_length",
    "target_modules": "method.targets",
    "torch_dtype": "model.dtype",
    "val_set_size": "data.eval.split",
    "val_size": "data.eval.split",
    "warmup_steps": "train.warmup_ratio",
}
