"""Recipes that are wrong in one way each, and exactly what `peftctl check recipe.yaml` says of them."""

from __future__ import annotations

LORA = (
    "dropout, layers, rank_pattern, alpha_pattern, rslora, dora, init, loraplus, lora_bias, modules_to_save, "
    "trainable_tokens, target_parameters"
)
METHODS = (
    "lora, ia3, adalora, loha, lokr, prompt_tuning, p_tuning, prefix_tuning, ln_tuning, bitfit, full, xlora, qlora, or "
    "another that `peftctl methods` lists"
)

# (what is wrong, the text, every fault in order)
BROKEN: list[tuple[str, str, list[str]]] = [
    (
        "an empty file",
        "",
        [
            "recipe.yaml:1:1: the recipe is empty",
        ],
    ),
    (
        "only comments",
        ("# nothing\n"),
        [
            "recipe.yaml:1:1: the recipe is empty",
        ],
    ),
    (
        "a list at the top",
        ("- model: x\n"),
        [
            "recipe.yaml:1:1: a recipe is a mapping of keys to settings (found a list)",
        ],
    ),
    (
        "a word at the top",
        ("hello\n"),
        [
            "recipe.yaml:1:1: a recipe is a mapping of keys to settings (found a single value)",
        ],
    ),
    (
        "two documents",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
            "---\n"
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:6:1: not YAML: a second document begins here, and a recipe is one",
        ],
    ),
    (
        "a tab for indentation",
        ("model: org/model\ndata:\n\ttrain: rows.jsonl\n"),
        [
            "recipe.yaml:3:1: not YAML: a tab stands where YAML takes only spaces",
        ],
    ),
    (
        "an unclosed bracket",
        ("model: org/model\ndata:\n  train: [rows.jsonl\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:4:7: not YAML: while parsing a flow sequence expected ',' or ']', but got ':'",
        ],
    ),
    (
        "an unclosed quote",
        ("model: 'org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:6:1: not YAML: while scanning a quoted scalar found unexpected end of stream",
        ],
    ),
    (
        "a second colon on the line",
        ("model: name: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:1:12: not YAML: a second `key:` on one line, or text with `: ` that needs quotes",
        ],
    ),
    (
        "a key without a colon",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\nseed\noutput: runs/x\n"),
        [
            "recipe.yaml:6:1: not YAML: a key without its colon",
        ],
    ),
    (
        "an unknown anchor",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: *settings\noutput: runs/x\n"),
        [
            "recipe.yaml:4:9: not YAML: found undefined alias 'settings'",
        ],
    ),
    (
        "an alias that holds itself",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: &a {epochs: *a}\n"),
        [
            "recipe.yaml:6:8: train.epochs.epochs.epochs: anchors and aliases make it larger than "
            "50,000 values or deeper than 32 levels",
        ],
    ),
    (
        "aliases that multiply",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
            "x0: &x0 [a, a, a, a, a, a, a, a, a, a]\n"
            "x1: &x1 [*x0, *x0, *x0, *x0, *x0, *x0, *x0, *x0, *x0, *x0]\n"
            "x2: &x2 [*x1, *x1, *x1, *x1, *x1, *x1, *x1, *x1, *x1, *x1]\n"
            "x3: &x3 [*x2, *x2, *x2, *x2, *x2, *x2, *x2, *x2, *x2, *x2]\n"
            "x4: &x4 [*x3, *x3, *x3, *x3, *x3, *x3, *x3, *x3, *x3, *x3]\n"
            "x5: &x5 [*x4, *x4, *x4, *x4, *x4, *x4, *x4, *x4, *x4, *x4]\n"
            "x6: &x6 [*x5, *x5, *x5, *x5, *x5, *x5, *x5, *x5, *x5, *x5]\n"
            "x7: &x7 [*x6, *x6, *x6, *x6, *x6, *x6, *x6, *x6, *x6, *x6]\n"
            "x8: &x8 [*x7, *x7, *x7, *x7, *x7, *x7, *x7, *x7, *x7, *x7]\n"
        ),
        [
            "recipe.yaml:6:22: x4[3][3][8]: anchors and aliases make it larger than 50,000 values or "
            "deeper than 32 levels",
        ],
    ),
    (
        "deep nesting",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
            "track: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]\n"
        ),
        [
            "recipe.yaml:6:39: nested deeper than 32 levels",
        ],
    ),
    (
        "a Python object",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: !!python/object/apply:os.system ['true']\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:4:9: method: this YAML tag means nothing here (found !!python/object/apply:os.system)",
        ],
    ),
    (
        "a tag on a mapping",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: !special {epochs: 1}\n"),
        [
            "recipe.yaml:6:8: train: this YAML tag means nothing here (found !special)",
        ],
    ),
    (
        "a set",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: !!set {epochs}\n"),
        [
            "recipe.yaml:6:8: train: this YAML tag means nothing here (found !!set)",
        ],
    ),
    (
        "a control character",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lo\x01ra\noutput: runs/x\n"),
        [
            "recipe.yaml:4: holds the character '\\x01', which YAML does not allow",
        ],
    ),
    (
        "a repeated key",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
            "train: {epochs: 1}\n"
            "train: {epochs: 2}\n"
        ),
        [
            "recipe.yaml:7:1: train: the key is repeated (see also recipe.yaml:6:1)",
        ],
    ),
    (
        "a key repeated within a section",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
            "train: {seed: 1, epochs: 1, seed: 2}\n"
        ),
        [
            "recipe.yaml:6:29: train.seed: the key is repeated (see also recipe.yaml:6:9)",
        ],
    ),
    (
        "a number for a key",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\n1: 2\n"),
        [
            "recipe.yaml:6:1: a key must be text (found 1); allowed: text, in quotes if need be",
        ],
    ),
    (
        "true for a key",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: {yes: 1}\n"),
        [
            "recipe.yaml:6:9: train: a key must be text (found yes); allowed: text, in quotes if need be",
        ],
    ),
    (
        "a list for a key",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\n? [a]\n: 1\n"),
        [
            "recipe.yaml:6:3: a key must be text (found a list); allowed: text, in quotes if need be",
        ],
    ),
    (
        "a word that is no whole number",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
            "train: {batch_size: !!int eight}\n"
        ),
        [
            "recipe.yaml:6:21: train.batch_size: cannot be read as a whole number (found eight)",
        ],
    ),
    (
        "no model",
        ("data:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:1:1: model: is missing (a recipe needs model, data, method, output)",
        ],
    ),
    (
        "nothing but an output",
        ("output: runs/x\n"),
        [
            "recipe.yaml:1:1: data: is missing (a recipe needs model, data, method, output)",
            "recipe.yaml:1:1: method: is missing (a recipe needs model, data, method, output)",
            "recipe.yaml:1:1: model: is missing (a recipe needs model, data, method, output)",
        ],
    ),
    (
        "no rows",
        ("model: org/model\ndata: {max_length: 128}\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:2:1: data.train: is missing",
        ],
    ),
    (
        "a misspelt section",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrian: {epochs: 1}\n"),
        [
            "recipe.yaml:6:1: trian: no such setting; allowed: model, task, data, method, train, eval, "
            "track, output, extends; did you mean train?",
        ],
    ),
    (
        "a section of another tool",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\nlora_r: 16\n"),
        [
            "recipe.yaml:6:1: lora_r: no such setting; allowed: model, task, data, method, train, eval, "
            "track, output, extends; did you mean method.rank?",
        ],
    ),
    (
        "a misspelt setting",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: {learing_rate: 1e-4}\n"),
        [
            "recipe.yaml:6:9: train.learing_rate: no such setting; allowed: epochs, max_steps, max_time, "
            "batch_size, micro_batch_tokens, learning_rate, schedule, warmup_ratio, optimizer, "
            "weight_decay, max_grad_norm, gradient_checkpointing, offload_activations, seed, init_from, fast, "
            "log_every, log_rows, save_every, keep_checkpoints, deterministic; did you mean "
            "learning_rate?",
        ],
    ),
    (
        "an abbreviation",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: {lr: 1e-4}\n"),
        [
            "recipe.yaml:6:9: train.lr: no such setting; allowed: epochs, max_steps, max_time, batch_size, "
            "micro_batch_tokens, learning_rate, schedule, warmup_ratio, optimizer, weight_decay, "
            "max_grad_norm, gradient_checkpointing, offload_activations, seed, init_from, fast, log_every, "
            "log_rows, save_every, keep_checkpoints, deterministic; did you mean learning_rate?",
        ],
    ),
    (
        "a hyphen for an underscore",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: {batch-size: 4}\n"),
        [
            "recipe.yaml:6:9: train.batch-size: no such setting; allowed: epochs, max_steps, max_time, "
            "batch_size, micro_batch_tokens, learning_rate, schedule, warmup_ratio, optimizer, "
            "weight_decay, max_grad_norm, gradient_checkpointing, offload_activations, seed, init_from, fast, "
            "log_every, log_rows, save_every, keep_checkpoints, deterministic; did you mean "
            "batch_size?",
        ],
    ),
    (
        "a setting in the wrong section",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\nmodel_dtype: bfloat16\n"),
        [
            "recipe.yaml:6:1: model_dtype: no such setting; allowed: model, task, data, method, train, "
            "eval, track, output, extends; did you mean model.dtype?",
        ],
    ),
    (
        "a misspelt setting of a source",
        ("model: org/model\ndata:\n  train: {path: rows.jsonl, fromat: messages}\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:3:29: data.train[0].fromat: no such setting; allowed: path, format, columns, "
            "filter, limit, config, hub_split, revision, sha256, weight; did you mean format?",
        ],
    ),
    (
        "a misspelt setting of held-out rows",
        ("model: org/model\ndata:\n  train: rows.jsonl\n  eval: {splt: 0.1}\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:4:3: data.eval: says nothing of where held-out rows come from; allowed: one of "
            "path, split, count",
            "recipe.yaml:4:10: data.eval.splt: no such setting; allowed: path, format, columns, filter, "
            "limit, config, hub_split, revision, sha256, split, count; did you mean split?",
        ],
    ),
    (
        "a misspelt method",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lroa\noutput: runs/x\n"),
        [
            f"recipe.yaml:4:1: method.name: no such method (found 'lroa'); allowed: {METHODS}; did you mean lora?",
        ],
    ),
    (
        "a misspelt method's name",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: {name: lorra}\noutput: runs/x\n"),
        [
            f"recipe.yaml:4:10: method.name: no such method (found 'lorra'); allowed: {METHODS}; did you mean lora?",
        ],
    ),
    (
        "a method without a name",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: {rank: 8}\noutput: runs/x\n"),
        [
            f"recipe.yaml:4:1: method.name: is missing; allowed: {METHODS}",
        ],
    ),
    (
        "a method without a name, and wrong whatever its name",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: {rank: 0, targtes: q_proj}\noutput: runs/x\n"),
        [
            f"recipe.yaml:4:1: method.name: is missing; allowed: {METHODS}",
            # Some methods have no rank, so 0 may be wrong for another reason.
            f"recipe.yaml:4:19: method.targtes: no such setting; allowed: name, targets, rank, alpha, {LORA}, "
            "feedforward, initial_rank, start, settle, orthogonal, rank_dropout, module_dropout, factor, tokens, text, "
            "network, hidden, adapters, layerwise, depth, softmax, temperature, top_k, scale, first_pass, "
            "train_adapters; did you mean targets?",
        ],
    ),
    (
        "a method's misspelt name, and what is wrong with the one that is near",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: {name: lorra, rank: 0}\noutput: runs/x\n"),
        [
            f"recipe.yaml:4:10: method.name: no such method (found 'lorra'); allowed: {METHODS}; did you mean lora?",
            "recipe.yaml:4:23: method.rank: out of range (found 0); allowed: at least 1",
        ],
    ),
    (
        "a method that is a number",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: 3\noutput: runs/x\n"),
        [
            f"recipe.yaml:4:1: method.name: must be a method's name (found 3); allowed: {METHODS}",
        ],
    ),
    (
        "a method that is nothing",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod:\noutput: runs/x\n"),
        [
            f"recipe.yaml:4:1: method: must be a method's name (found nothing); allowed: {METHODS}",
        ],
    ),
    (
        "a setting of another method",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: {name: prompt_tuning, targets: q_proj}\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:4:31: method.targets: no such setting; allowed: name, tokens, init, text",
        ],
    ),
    (
        "a misspelt setting of the quantisation",
        (
            "model: {name: org/model, quantization: {bts: 4}}\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:1:41: model.quantization.bts: no such setting; allowed: bits, type, double_quant; "
            "did you mean bits?",
        ],
    ),
    (
        "bits that nothing can keep",
        (
            "model: {name: org/model, quantization: {bits: 5}}\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:1:41: model.quantization.bits: no such value (found 5); allowed: 4, 8",
        ],
    ),
    (
        "a type of 8 bits",
        (
            "model: {name: org/model, quantization: {bits: 8, type: fp4, double_quant: false}}\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:1:50: model.quantization.type: has no effect on 8 bits",
            "recipe.yaml:1:61: model.quantization.double_quant: has no effect on 8 bits",
        ],
    ),
    (
        "a method that 4 bits do not go with",
        (
            "model: {name: org/model, quantization: {bits: 4}}\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: lokr\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:4:1: method.name: lokr does not work on 4 bits: RuntimeError: shape '[2048, 1]' is invalid "
            "for input of size 4096 (see also recipe.yaml:1:26); allowed: quantization.bits 8, a base that is not "
            "quantised, or method lora, ia3 or adalora",
        ],
    ),
    (
        "another method that 4 bits do not go with",
        (
            "model: {name: org/model, quantization: {bits: 4}}\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: {name: loha, rank: 2}\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:4:10: method.name: loha does not work on 4 bits: loha trains 295024 parameters, where its "
            "formula gives 16384 (see also recipe.yaml:1:26); allowed: quantization.bits 8, a base that is not "
            "quantised, or method lora, ia3 or adalora",
        ],
    ),
    (
        "a method that cannot be checkpointed",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: prefix_tuning\n"
            "output: runs/x\n"
            "train: {gradient_checkpointing: true}\n"
        ),
        [
            "recipe.yaml:4:1: method.name: prefix_tuning does not work with gradient checkpointing: RuntimeError: The "
            "size of tensor a (12) must match the size of tensor b (18) at non-singleton dimension 3 (see also "
            "recipe.yaml:6:9); allowed: no checkpointing, or method lora, ia3 or adalora",
        ],
    ),
    (
        "a misspelt task",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntask: casual_lm\n"),
        [
            "recipe.yaml:6:1: task.name: no such task (found 'casual_lm'); allowed: causal_lm, seq2seq_lm, "
            "seq_cls, token_cls, question_answering, feature_extraction; "
            "did you mean causal_lm?",
        ],
    ),
    (
        "a misspelt format",
        ("model: org/model\ndata:\n  train: {path: rows.jsonl, format: mesages}\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:3:29: data.train[0].format: no such format (found 'mesages'); allowed: auto, "
            "messages, instruction, prompt_completion, text; did you mean messages?",
        ],
    ),
    (
        "a misspelt format of the second source",
        ("model: org/model\ndata:\n  train: [a.jsonl, {path: b.jsonl, format: chat}]\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:3:36: data.train[1].format: no such format (found 'chat'); allowed: auto, "
            "messages, instruction, prompt_completion, text",
        ],
    ),
    (
        "a misspelt dtype",
        ("model: {name: org/model, dtype: bf16}\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:1:26: model.dtype: no such value (found 'bf16'); allowed: auto, bfloat16, "
            "float32; did you mean bfloat16?",
        ],
    ),
    (
        "a misspelt schedule",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: {schedule: cosin}\n"),
        [
            "recipe.yaml:6:9: train.schedule: no such value (found 'cosin'); allowed: constant, linear, "
            "cosine; did you mean cosine?",
        ],
    ),
    (
        "a misspelt optimizer",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: {optimizer: adam}\n"),
        [
            "recipe.yaml:6:9: train.optimizer: no such value (found 'adam'); allowed: adamw, sgd, "
            "adafactor, adamw_8bit, paged_adamw, paged_adamw_8bit; did you mean adamw?",
        ],
    ),
    (
        "a misspelt tracker",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrack: {to: [tensorbord]}\n"),
        [
            "recipe.yaml:6:14: track.to[0]: no such value (found 'tensorbord'); allowed: aim, clearml, "
            "comet_ml, dvclive, mlflow, swanlab, tensorboard, trackio, wandb; did you mean tensorboard?",
        ],
    ),
    (
        "a setting of the method misspelt",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: {name: lora, rnak: 8}\noutput: runs/x\n"),
        [
            "recipe.yaml:4:22: method.rnak: no such setting; allowed: name, targets, rank, alpha, "
            f"{LORA}; did you mean rank?",
        ],
    ),
    (
        "a rank of zero",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: {name: lora, rank: 0}\noutput: runs/x\n"),
        [
            "recipe.yaml:4:22: method.rank: out of range (found 0); allowed: at least 1",
        ],
    ),
    (
        "a rank that is half",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: {name: lora, rank: 8.5}\noutput: runs/x\n"),
        [
            "recipe.yaml:4:22: method.rank: must be a whole number (found 8.5)",
        ],
    ),
    (
        "a rank in quotes",
        ('model: org/model\ndata:\n  train: rows.jsonl\nmethod: {name: lora, rank: "8"}\noutput: runs/x\n'),
        [
            "recipe.yaml:4:22: method.rank: must be a whole number (found '8')",
        ],
    ),
    (
        "a dropout of one",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: {name: lora, dropout: 1}\noutput: runs/x\n"),
        [
            "recipe.yaml:4:22: method.dropout: out of range (found 1); allowed: less than 1",
        ],
    ),
    (
        "an alpha below zero",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: {name: lora, alpha: -1}\noutput: runs/x\n"),
        [
            "recipe.yaml:4:22: method.alpha: out of range (found -1); allowed: more than 0",
        ],
    ),
    (
        "targets that are a number",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: {name: lora, targets: 3}\noutput: runs/x\n"),
        [
            "recipe.yaml:4:22: method.targets: must be text or a list of it (found 3)",
        ],
    ),
    (
        "a target that is a number",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: {name: lora, targets: [q_proj, 3]}\noutput: runs/x\n"),
        [
            "recipe.yaml:4:40: method.targets[1]: must be text: put it in quotes (found 3)",
        ],
    ),
    (
        "no targets",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: {name: lora, targets: []}\noutput: runs/x\n"),
        [
            "recipe.yaml:4:22: method.targets: too short (found a list of 0); allowed: at least 1 in the list",
        ],
    ),
    (
        "an empty target",
        ('model: org/model\ndata:\n  train: rows.jsonl\nmethod: {name: lora, targets: ""}\noutput: runs/x\n'),
        [
            "recipe.yaml:4:22: method.targets[0]: too short (found ''); allowed: at least 1 letter",
        ],
    ),
    (
        "targets that are a mapping",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: {name: lora, targets: {q_proj: true}}\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:4:22: method.targets: must be text or a list of it (found a mapping)",
        ],
    ),
    (
        "no for a model's name",
        ("model: no\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:1:1: model.name: must be text: YAML reads no as false; put it in quotes (found no)",
        ],
    ),
    (
        "on for an output",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: on\n"),
        [
            "recipe.yaml:5:1: output: must be text: YAML reads on as true; put it in quotes (found on); "
            "allowed: the run directory",
        ],
    ),
    (
        "a number for an output",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: 2026\n"),
        [
            "recipe.yaml:5:1: output: must be text: put it in quotes (found 2026); allowed: the run directory",
        ],
    ),
    (
        "nothing for an output",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: \n"),
        [
            "recipe.yaml:5:1: output: must be text (found nothing); allowed: the run directory",
        ],
    ),
    (
        "an infinite learning rate",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: {learning_rate: .inf}\n"),
        [
            "recipe.yaml:6:9: train.learning_rate: must be a finite number (found .inf)",
        ],
    ),
    (
        "a learning rate of zero",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: {learning_rate: 0}\n"),
        [
            "recipe.yaml:6:9: train.learning_rate: out of range (found 0); allowed: more than 0",
        ],
    ),
    (
        "a learning rate that is text",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: {learning_rate: 1e-4x}\n"),
        [
            "recipe.yaml:6:9: train.learning_rate: must be a number (found '1e-4x')",
        ],
    ),
    (
        "an octal seed",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: {seed: 010}\n"),
        [
            "recipe.yaml:6:9: train.seed: must be a whole number (found '010')",
        ],
    ),
    (
        "a seed below zero",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: {seed: -1}\n"),
        [
            "recipe.yaml:6:9: train.seed: out of range (found -1); allowed: at least 0",
        ],
    ),
    (
        "a switch that is a number",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
            "train: {gradient_checkpointing: 1}\n"
        ),
        [
            "recipe.yaml:6:9: train.gradient_checkpointing: must be true or false (found 1)",
        ],
    ),
    (
        "a batch size of nothing",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: {batch_size: }\n"),
        [
            "recipe.yaml:6:9: train.batch_size: must be a whole number (found nothing)",
        ],
    ),
    (
        "a section that is a list",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: [1, 2]\n"),
        [
            "recipe.yaml:6:1: train: must be a mapping (found a list of 2)",
        ],
    ),
    (
        "a section that is a word",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrain: fast\n"),
        [
            "recipe.yaml:6:1: train: must be a mapping (found 'fast')",
        ],
    ),
    (
        "an empty list of sources",
        ("model: org/model\ndata:\n  train: []\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:3:3: data.train: too short (found a list of 0); allowed: at least 1 in the list",
        ],
    ),
    (
        "a source that is a number",
        ("model: org/model\ndata:\n  train: [3]\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:3:11: data.train[0].path: must be text: put it in quotes (found 3)",
        ],
    ),
    (
        "an empty path",
        ('model: org/model\ndata:\n  train: ""\nmethod: lora\noutput: runs/x\n'),
        [
            "recipe.yaml:3:3: data.train[0].path: too short (found ''); allowed: at least 1 letter",
        ],
    ),
    (
        "a split of everything",
        ("model: org/model\ndata:\n  train: rows.jsonl\n  eval: {split: 1}\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:4:10: data.eval.split: out of range (found 1); allowed: less than 1",
        ],
    ),
    (
        "a maximum length of one",
        ("model: org/model\ndata:\n  train: rows.jsonl\n  max_length: 1\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:4:3: data.max_length: out of range (found 1); allowed: at least 8",
        ],
    ),
    (
        "epochs and steps",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
            "train: {epochs: 1, max_steps: 10}\n"
        ),
        [
            "recipe.yaml:6:9: train.epochs: and train.max_steps both say how long to train (see also recipe.yaml:6:20)",
        ],
    ),
    (
        "a split and a file of held-out rows",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "  eval: {path: e.jsonl, split: 0.1}\n"
            "method: lora\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:4:10: data.eval.path: and data.eval.split both say which rows are held out "
            "(see also recipe.yaml:4:25)",
        ],
    ),
    (
        "held-out rows from nowhere",
        ("model: org/model\ndata:\n  train: rows.jsonl\n  eval: {limit: 3}\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:4:3: data.eval: says nothing of where held-out rows come from; allowed: one of "
            "path, split, count",
        ],
    ),
    (
        "a format for rows held out of the training rows",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "  eval: {split: 0.1, format: messages}\n"
            "method: lora\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:4:22: data.eval.format: has no effect on rows taken from the training rows "
            "(see also recipe.yaml:4:10)",
        ],
    ),
    (
        "evaluation without held-out rows",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\neval: {every: 10}\n"),
        [
            "recipe.yaml:6:8: eval.every: has no effect without held-out rows: set data.eval",
        ],
    ),
    (
        "choices without held-out rows",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\neval: {choices: [a, b]}\n"),
        [
            "recipe.yaml:6:8: eval.choices: has no effect without held-out rows: set data.eval",
        ],
    ),
    (
        "a single choice",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "  eval: e.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
            "eval: {choices: [a]}\n"
        ),
        [
            "recipe.yaml:7:8: eval.choices: too short (found a list of 1); allowed: at least 2 in the list",
        ],
    ),
    (
        "a repeated choice",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "  eval: e.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
            "eval: {choices: [a, a]}\n"
        ),
        [
            "recipe.yaml:7:8: eval.choices: a choice is repeated (found ['a', 'a'])",
        ],
    ),
    (
        "choices that YAML takes for switches",
        (
            "model: org/model\n"
            "data:\n"
            "  train: rows.jsonl\n"
            "  eval: e.jsonl\n"
            "method: lora\n"
            "output: runs/x\n"
            "eval: {choices: [yes, no]}\n"
        ),
        [
            "recipe.yaml:7:18: eval.choices[0]: must be text: YAML reads yes as true; put it in quotes (found yes)",
            "recipe.yaml:7:23: eval.choices[1]: must be text: YAML reads no as false; put it in quotes (found no)",
        ],
    ),
    (
        "a project without a tracker",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\ntrack: {project: triage}\n"),
        [
            "recipe.yaml:6:9: track.project: has no effect without a tracker: set track.to",
        ],
    ),
    (
        "a variable that is not set",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: ${env:PEFTCTL_NO_SUCH}\n"),
        [
            "recipe.yaml:5:9: output: the environment variable PEFTCTL_NO_SUCH is not set",
        ],
    ),
    (
        "a reference of no known kind",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: ${HOME}/x\n"),
        [
            "recipe.yaml:5:9: output: no such reference (found ${HOME}/x); allowed: ${env:NAME}, the "
            "value of an environment variable",
        ],
    ),
    (
        "extends that is a list",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\nextends: [a.yaml]\n"),
        [
            "recipe.yaml:6:1: extends: must be the path of one recipe",
        ],
    ),
    (
        "extends of a file that is not there",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\nextends: nowhere.yaml\n"),
        [
            "recipe.yaml:6:1: extends: nowhere.yaml cannot be read: No such file or directory",
        ],
    ),
    (
        "extends of itself",
        ("model: org/model\ndata:\n  train: rows.jsonl\nmethod: lora\noutput: runs/x\nextends: recipe.yaml\n"),
        [
            "recipe.yaml:6:1: extends: goes round in a circle: recipe.yaml -> recipe.yaml",
        ],
    ),
    (
        "many faults at once",
        (
            "modle: org/model\n"
            "data: {train: rows.jsonl, max_len: 3}\n"
            "method: {name: lora, rnak: 8, dropout: 2}\n"
            "train: {epochs: 0, max_steps: 5, schedule: linaer}\n"
        ),
        [
            "recipe.yaml:1:1: model: is missing (a recipe needs model, data, method, output)",
            "recipe.yaml:1:1: modle: no such setting; allowed: model, task, data, method, train, eval, "
            "track, output, extends; did you mean model?",
            "recipe.yaml:1:1: output: is missing (a recipe needs model, data, method, output)",
            "recipe.yaml:2:27: data.max_len: no such setting; allowed: train, eval, learn, template, "
            "max_length, overlong, on_bad_row, max_bad_fraction, streaming; did you mean max_length?",
            "recipe.yaml:3:22: method.rnak: no such setting; allowed: name, targets, rank, alpha, "
            f"{LORA}; did you mean rank?",
            "recipe.yaml:3:31: method.dropout: out of range (found 2); allowed: less than 1",
            "recipe.yaml:4:9: train.epochs: out of range (found 0); allowed: more than 0",
            "recipe.yaml:4:9: train.epochs: and train.max_steps both say how long to train (see also recipe.yaml:4:20)",
            "recipe.yaml:4:34: train.schedule: no such value (found 'linaer'); allowed: constant, "
            "linear, cosine; did you mean linear?",
        ],
    ),
    (
        "layers of a network that has none",
        (
            "model: org/model\n"
            "data: {train: rows.jsonl}\n"
            "method: {name: p_tuning, layers: 2, dropout: 0.1}\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:3:26: method.layers: has no effect with network: mlp",
            "recipe.yaml:3:37: method.dropout: has no effect but between the layers of an LSTM that has two or more",
        ],
    ),
    (
        "a text that nothing starts from",
        ("model: org/model\ndata: {train: rows.jsonl}\nmethod: {name: prompt_tuning, text: odd}\noutput: runs/x\n"),
        [
            "recipe.yaml:3:31: method.text: is what `init: text` starts from, and needed there alone",
        ],
    ),
    (
        "a start from no text",
        ("model: org/model\ndata: {train: rows.jsonl}\nmethod: {name: prefix_tuning, init: text}\noutput: runs/x\n"),
        [
            "recipe.yaml:3:1: method.text: is what `init: text` starts from, and needed there alone",
        ],
    ),
    (
        "a text for a network",
        (
            "model: org/model\n"
            "data: {train: rows.jsonl}\n"
            "method: {name: prefix_tuning, init: text, text: odd, hidden: 8}\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:3:31: method.init: a text's keys and values cannot be what a network makes; leave out hidden",
        ],
    ),
    (
        "a rank that grows",
        (
            "model: org/model\n"
            "data: {train: rows.jsonl}\n"
            "method: {name: adalora, rank: 4, initial_rank: 3}\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:3:34: method.initial_rank: below the rank that is to be left (found 3); allowed: at least 4",
        ],
    ),
    (
        "a number for a section",
        ("model: {name: org/model, quantization: 4}\ndata: {train: rows.jsonl}\nmethod: lora\noutput: runs/x\n"),
        [
            "recipe.yaml:1:26: model.quantization: must be a mapping (found 4); "
            "allowed: a mapping of bits, type, double_quant",
        ],
    ),
    (
        "a model and a run that are not there",
        ("model: ./model\ndata: {train: rows.jsonl}\nmethod: lora\noutput: runs/x\ntrain: {init_from: recipe.yml}\n"),
        [
            "recipe.yaml:1:1: model.name: no such file or folder (found './model')",
            "recipe.yaml:5:9: train.init_from: no such folder (found 'recipe.yml'); did you mean recipe.yaml?",
        ],
    ),
    (
        "a setting's name for a method",
        "model: org/model\ndata: {train: rows.jsonl}\nmethod: pissa\noutput: runs/x\n",
        [
            "recipe.yaml:3:1: method.name: pissa is lora with init: pissa; allowed: {name: lora, init: pissa}",
        ],
    ),
    (
        "a method that nothing can be trained with",
        "model: org/model\ndata: {train: rows.jsonl}\nmethod: cpt\noutput: runs/x\n",
        [
            "recipe.yaml:3:1: method.name: cpt cannot be trained: it needs to be told of every token which part of an "
            "example it is, which rows here do not say (see also recipe.yaml:1:1); "
            "allowed: method lora, ia3 or adalora",
        ],
    ),
    (
        "a classifier of one layer with a width",
        (
            "model: org/model\n"
            "data: {train: rows.jsonl}\n"
            "method: {name: xlora, adapters: [a, b], hidden: 8}\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:3:34: method.adapters[0]: no such folder (found 'a')",
            "recipe.yaml:3:37: method.adapters[1]: no such folder (found 'b')",
            "recipe.yaml:3:41: method.hidden: has no effect on a classifier of depth 1",
        ],
    ),
    (
        "a module that is adapted and trained whole",
        (
            "model: org/model\n"
            "data: {train: rows.jsonl}\n"
            "method: {name: lora, targets: [q_proj, mlp.up_proj], modules_to_save: [up_proj]}\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:3:54: method.modules_to_save: 'up_proj' is trained whole, and "
            "'mlp.up_proj' is adapted; allowed: one of the two",
        ],
    ),
    (
        "a rank for none of the targets",
        (
            "model: org/model\n"
            "data: {train: rows.jsonl}\n"
            "method: {name: lora, targets: [q_proj, v_proj], rank_pattern: {k_proj: 4}}\n"
            "output: runs/x\n"
        ),
        [
            "recipe.yaml:3:49: method.rank_pattern: 'k_proj' matches no target; allowed: q_proj, v_proj",
        ],
    ),
    (
        "two starts",
        (
            "model: org/model\n"
            "data: {train: rows.jsonl}\n"
            "method: {name: lora, init: pissa}\n"
            "output: runs/x\n"
            "train: {init_from: runs/first}\n"
        ),
        [
            "recipe.yaml:3:22: method.init: pissa says what to start from, and so does train.init_from "
            "(see also recipe.yaml:5:9); allowed: init default",
            "recipe.yaml:5:9: train.init_from: no such folder (found 'runs/first')",
        ],
    ),
    (
        "an evaluation after the end",
        (
            "model: org/model\n"
            "data: {train: rows.jsonl, eval: e.jsonl}\n"
            "method: lora\n"
            "output: runs/x\n"
            "eval: {every: 5}\n"
            "train: {max_steps: 5}\n"
        ),
        [
            "recipe.yaml:5:8: eval.every: has no effect in a run of 5 steps: the end of training is always measured "
            "(found 5) (see also recipe.yaml:6:9)",
        ],
    ),
]
