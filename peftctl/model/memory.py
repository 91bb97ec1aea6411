"""How many tokens fit in one forward and backward pass, by arithmetic from the model's shape and the device's memory.

From the memory that a device has, not from what happens to be free: the same recipe gives the same bits.
"""

from __future__ import annotations

import os
from typing import Any

# On a CPU longer passes gain nothing once the matrix products are large, and fall out of the caches.
MOST = {"cpu": 1024, "cuda": 16384}
# Of the device's memory: a CPU's process is killed unannounced, and the machine has other work to do.
SHARE = {"cpu": 0.25, "cuda": 0.6}
LEAST = 64


def micro_batch_tokens(config: Any, held_bytes: int, device: Any, checkpointing: bool) -> int:
    """Tokens of a forward pass whose activations fit beside ``held_bytes`` of weights, gradients and optimizer state,
    a multiple of 64.
    """
    kind = device.type if device.type in MOST else "cuda"
    room = SHARE[kind] * total_bytes(device) - held_bytes
    fitting = int(room // activation_bytes(config, checkpointing))
    return max(LEAST, min(MOST[kind], fitting) // LEAST * LEAST)


def activation_bytes(config: Any, checkpointing: bool) -> int:
    """What a token leaves for the backward pass, in bytes, at two a number.

    A layer keeps about ten vectors of the hidden width (what its norms, projections and attention read) and four of
    the feed-forward width; checkpointed, only what it reads itself. Attention's probabilities add as much again as
    the hidden vectors for rows of some hundred tokens.
    """
    text = config.get_text_config()
    hidden, layers = int(text.hidden_size), int(text.num_hidden_layers)
    inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
    one_layer = 2 * (20 * hidden + 4 * inner)
    return layers * 2 * hidden + one_layer if checkpointing else layers * one_layer


def total_bytes(device: Any) -> int:
    """All memory of the device, in use or not."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
