"""The machine's own matrix rate at a model's shapes, and the floating-point work that a step needs.

python scripts/benchmark/matrix.py CONFIG.json THREADS          prints operations a second as JSON
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOKENS = 1024
HEAD_TOKENS = 256
REPEATS = 20


def shapes(config: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Of each product of a layer, and of the head: rows, inputs, outputs. Layers that share an input are one."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    width = config.get("head_dim") or hidden // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    return [
        (TOKENS, hidden, queries + 2 * keys),
        (TOKENS, queries, hidden),
        (TOKENS, hidden, 2 * inner),
        (TOKENS, inner, hidden),
        (HEAD_TOKENS, hidden, config["vocab_size"]),
    ]


def needed(config: dict[str, Any], lengths: Sequence[int], learned: int, rank: int) -> float:
    """Floating-point operations of a forward and backward pass with LoRA on all linear layers of a frozen model.

    A frozen product is taken forward and for its input's gradient; LoRA's two also for their own; attention's two
    forward and four backward, over half the square; the head only where something is learned. Padding counts nothing.
    """
    *layer, head = shapes(config)
    tokens, layers = sum(lengths), config["num_hidden_layers"]
    width = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    sides = 2 * (hidden + queries) + 2 * (hidden + keys) + 3 * (hidden + inner)
    frozen = 4 * tokens * sum(inputs * outputs for _, inputs, outputs in layer)
    lora = 6 * tokens * rank * sides
    attention = sum(6 * length * length * queries for length in lengths)
    return float(layers * (frozen + lora + attention) + 4 * learned * head[1] * head[2])


def rate(config: dict[str, Any], threads: int, device: str = "cpu") -> float:
    """Operations a second of bfloat16 products of these shapes, forward and backward, each as often as in a step."""
    import torch

    torch.set_num_threads(threads)
    layers = config["num_hidden_layers"]
    work = seconds = 0.0
    for rows, inputs, outputs in shapes(config):
        x, weight, dy = (
            torch.randn(*shape, dtype=torch.bfloat16, device=device)
            for shape in ((rows, inputs), (outputs, inputs), (rows, outputs))
        )
        times = TOKENS // rows if rows != TOKENS else layers
        for product in (lambda x=x, w=weight: x @ w.T, lambda dy=dy, w=weight: dy @ w):
            for _ in range(3):
                product()
            taken = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                product()
                if device != "cpu":
                    torch.cuda.synchronize()
                taken.append(time.perf_counter() - began)
            work += times * 2.0 * rows * inputs * outputs
            seconds += times * sorted(taken)[REPEATS // 2]
    return work / seconds


if __name__ == "__main__":
    print(json.dumps(rate(json.loads(Path(sys.argv[1]).read_text("utf-8")), int(sys.argv[2]))))
