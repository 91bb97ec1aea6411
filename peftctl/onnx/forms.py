"""Which form a model takes, and which models take none."""

from __future__ import annotations

import re
from typing import Any

from peftctl.model.auto import auto_class
from peftctl.onnx.contract import Form
from peftctl.onnx.decoder import Decoder
from peftctl.onnx.one_pass import OnePass
from peftctl.onnx.seq2seq import Seq2Seq
from peftctl.tasks import Task

# Kinds of layers whose memory of a text is its keys and values, and nothing else.
KEEP_KEYS = {"full_attention", "sliding_attention", "chunked_attention"}
# Rotary positions that are computed otherwise once a text is long: a graph has one way alone.
BY_LENGTH = {"dynamic", "longrope"}
# What configs call the number of a layer's experts.
EXPERTS = re.compile(r"(num|n|moe_num)_(local_|routed_)?experts")


def form(task: Task, config: Any) -> Form:
    """What becomes of a model of ``config`` that does ``task``."""
    if not task.generates:
        return OnePass()
    return Seq2Seq() if config.is_encoder_decoder else Decoder()


def unfit(task: Task, config: Any) -> str:
    """Why a model of ``config`` cannot be a graph that does ``task``, or ""."""
    kind = f"{config.model_type} models"
    if getattr(config, "auto_map", None):
        return f"{kind} bring code of their own, of which it cannot be told what a graph leaves out"
    auto = auto_class(task, config)
    text = config.get_text_config()
    if auto is not task.model_class(config) or text is not config:
        return f"{kind} read more than text, and graphs are made of models of text"
    if kinds := BY_LENGTH & _rotary(text):
        return (
            f"its rotary positions ({', '.join(sorted(kinds))}) are computed otherwise where a text is long, and a "
            "graph computes them in one way"
        )
    if any(EXPERTS.fullmatch(name) and isinstance(count, int) and count > 1 for name, count in vars(text).items()):
        return f"{kind} send every token to experts of their own, for which ONNX has no operation"
    if not task.generates:
        return ""
    made = auto._model_mapping.get(type(config), None)
    layers = set(getattr(text, "layer_types", None) or ()) - KEEP_KEYS
    if layers or getattr(made, "_is_stateful", False):
        which = f" ({', '.join(sorted(layers))})" if layers else ""
        return f"{kind} remember a text otherwise than by keys and values of attention{which}"
    return ""


def _rotary(config: Any) -> set[str]:
    """The kinds of rotary positions of its layers."""
    said = getattr(config, "rope_parameters", None) or {}
    each = [said, *(value for value in said.values() if isinstance(value, dict))]
    return {str(one["rope_type"]) for one in each if "rope_type" in one}
