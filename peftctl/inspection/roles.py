"""What each layer does, told from its name: one table over the families of transformers."""

from __future__ import annotations

import functools
import re

HEAD, EMBEDDING, EXPERTS, ROUTER, OTHER = "head", "embedding", "experts", "router", "other"
QUERY_KEY_VALUE, KEY_VALUE, GATE_UP = "query, key, value", "key, value", "gate, up"

# In the order in which they are shown. A fused layer's role names all that comes out of it.
ATTENTION = (QUERY_KEY_VALUE, "query", "key", "value", KEY_VALUE, "output")
FEED_FORWARD = (GATE_UP, "gate", "up", "down")
ORDER = (*ATTENTION, *FEED_FORWARD, EXPERTS, ROUTER, OTHER, EMBEDDING, HEAD)

# Where a name alone says too little, it is read with the block that it stands in.
IN_ATTENTION = r"\w*(?:attn|attention|attentions|Attention|mlstm_layer)\.(?:\*\.|self\.|output\.)?"
IN_FEED_FORWARD = r"(?:\w*mlps?|ffn|feed_forward|DenseReluDense)\.(?:\*\.)?"
# Small layers that look like others and decide what attention looks at, or how much of it is kept.
BESIDE = rf"(?:indexer|compressor|forget_gate)\.\w+|{IN_ATTENTION}gate_proj|{IN_FEED_FORWARD}(?:key|value|receptance)"

# The first that matches the end of a name whose layer numbers are stars. Names are code's, not a user's.
PATTERNS = [
    (role, re.compile(rf"(?:^|\.)(?:{pattern})$"))
    for role, pattern in (
        (OTHER, BESIDE),
        (ROUTER, r"router|router\..*|gate|\w*shared_expert_gate|gating"),
        (QUERY_KEY_VALUE, r"qkv|\w*qkv_proj|query_key_value|c_attn|Wqkv|W_pack|att_proj|in_proj_qkvz?"),
        (QUERY_KEY_VALUE, rf"{IN_ATTENTION}in_proj"),
        ("query", r"q|query|q_proj|q_lin|wq|Wq|wq_[ab]|query_proj|linear_q|to_q|q_attn|q_[ab]_proj\w*|project_q"),
        ("key", r"k|key|k_proj|k_lin|wk|Wk|key_proj|linear_k|to_k|project_k"),
        ("value", r"v|value|v_proj|v_lin|wv|Wv|value_proj|linear_v|to_v|project_v"),
        (KEY_VALUE, r"kv|kv_proj|kv_[ab]_proj\w*|wkv\w*|to_kv"),
        ("output", r"o|o_proj|o_[ab]_proj|out_lin|attention_out"),
        ("output", rf"{IN_ATTENTION}(?:out_proj|dense|c_proj|proj|wo|Wo|output_proj|linear_out|out|output)"),
        (GATE_UP, rf"gate_up_proj|w12|{IN_FEED_FORWARD}(?:Wi|input_linear)"),
        ("gate", r"gate_proj|wi_0|w1"),
        ("up", r"up_proj|fc1|wi|wi_1|w3|c_fc|dense_h_to_4h|lin1|fc_in|linear1|linear_fc1|proj_up|ffn"),
        ("up", r"intermediate\.dense"),
        ("down", r"down_proj|fc2|wo|w2|lin2|fc_out|dense_4h_to_h|linear2|linear_fc2|proj_down|ffn_output"),
        ("down", rf"\*\.output\.dense|{IN_FEED_FORWARD}(?:Wo|c_proj|output_linear)"),
    )
]
HEADS = re.compile(
    r"^(?:cls\.predictions\.|lm_head\.)?(?:lm_head|score|classifier|qa_outputs|embed_out|decoder|proj_out)$"
)
# The towers beside a language model, by the part of the path that names them; the first that matches.
PARTS = (
    ("projector", re.compile(r"(?:^|\.)(?:\w*projector|connector|merger|aligner|modality_projection)(?:\.|$)")),
    ("vision", re.compile(r"(?:^|\.)(?:\w*vision\w*|\w*visual\w*|vit|image_\w+)(?:\.|$)")),
    ("audio", re.compile(r"(?:^|\.)(?:\w*audio\w*|\w*speech\w*)(?:\.|$)")),
)


@functools.lru_cache(100_000)
def collapsed(name: str) -> str:
    """A module's name with a star for each layer number."""
    return re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name)


@functools.lru_cache(100_000)
def role(name: str) -> str:
    """What the linear layer of this collapsed name does."""
    if HEADS.search(name):
        return HEAD
    plain = name.removesuffix(".linear")  # some wrap each layer to clip what comes out of it
    return next((found for found, pattern in PATTERNS if pattern.search(plain)), OTHER)


@functools.lru_cache(100_000)
def part(name: str) -> str:
    """The tower that a module belongs to; "" for the language model."""
    return next((found for found, pattern in PARTS if pattern.search(name)), "")
