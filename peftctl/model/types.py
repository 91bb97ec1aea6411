"""Token types, which tell a question from its text: PEFT's class for question answering takes them and drops them.

Seen in peft 0.21.2 (``PeftModelForQuestionAnswering.forward``): a model trained so would read other vectors than it
does once it is merged.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any

TYPES = "token_type_ids"
ASK = """\
peft's class for this task drops token_type_ids. With them, as it was trained: `model.get_base_model()(**inputs)`.
"""
CANNOT = """\
peft's class for this task drops token_type_ids, with which it was trained: its logits are others than peftctl's.
"""


def drops(peft_model: Any) -> bool:
    """Whether the model's base takes token types that PEFT's forward pass does not hand on."""
    own = TYPES in inspect.signature(type(peft_model).forward).parameters
    return own and TYPES in inspect.signature(type(peft_model.get_base_model()).forward).parameters


def hand_on(peft_model: Any) -> None:
    """Have the model's forward pass hand token types to its base; what a method puts before rows is of type 0."""
    if not drops(peft_model):
        return
    base, plain = peft_model.get_base_model(), peft_model.forward

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        types = kwargs.pop(TYPES, None)
        if types is None:
            return plain(*args, **kwargs)
        hook = base.register_forward_pre_hook(functools.partial(_with_types, types), with_kwargs=True)
        try:
            return plain(*args, **kwargs)
        finally:
            hook.remove()

    peft_model.forward = forward


def note(peft_model: Any) -> str:
    """What whoever loads the adapter with plain peft has to know of it; "" where there is nothing."""
    if not drops(peft_model):
        return ""
    return CANNOT if getattr(peft_model.active_peft_config, "is_prompt_learning", False) else ASK


def _with_types(types: Any, module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    import torch

    rows = kwargs.get("inputs_embeds")
    before = 0 if rows is None else rows.shape[1] - types.shape[1]
    return args, {**kwargs, TYPES: types if not before else torch.cat([types.new_zeros(len(types), before), types], 1)}
