"""Put the fast functions into a model, where its own modules compute the same; say where; take them out again.

Nothing is recognised by a model's name. A module with the parts of a known kind is tried: the function must give its
output and its gradients for random inputs, within rounding, or the module is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from peftctl.fast.equal import lively, random, same
from peftctl.fast.gate import gated
from peftctl.fast.linear import Adapted, Group
from peftctl.fast.norm import rms_norm
from peftctl.fast.rotary import rotary, rotary_varlen

# Two rows, so that one which sees the other shows.
PROBE_BOUNDS = (0, 9, 15)
# Small hidden states: where attention is all on one token, its gradients are made of rounding alone.
PROBE_SIZE = 0.1

LowRankOf = Callable[[Any], Any]
Parts = Sequence[Sequence[Adapted | None]]


@dataclass
class Installed:
    """What was put where. ``counts`` by kind; ``left`` names kinds of module that were tried and differ."""

    counts: dict[str, int] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def put(self, kind: str, module: nn.Module, forward: Callable[..., Any]) -> None:
        module.forward = forward
        self._undo.append(lambda: module.__dict__.pop("forward"))
        self.counts[kind] = self.counts.get(kind, 0) + 1

    def hold(self, group: Group) -> None:
        self._undo.append(group.release)

    def remove(self) -> None:
        """The model as it was."""
        while self._undo:
            self._undo.pop()()
        self.counts.clear()


def install(model: nn.Module, low_rank: LowRankOf, *, norm: bool, lora: bool, packed: bool, compile: bool) -> Installed:
    """Put in what is asked for and equal. ``low_rank`` says of an adapted layer what its update is, if it is one.

    ``packed``: the model's attention is the one for packed rows already, so whole attention modules can be replaced.
    ``compile``: what is not a matrix product goes through torch.compile.
    """
    installed = Installed()
    verdicts: dict[Any, bool] = {}
    grouped: set[nn.Module] = set()
    attention, feed_forward = partial(_attention, compile=compile), partial(_feed_forward, compile=compile)
    for module in list(model.modules()):
        if norm and (offset := _norm_offset(module, verdicts, compile)) is not None:
            _put_norm(installed, module, offset, compile)
        if lora and packed and (parts := _attention_parts(module, low_rank)):
            put = _put_if_equal(installed, "attention", module, parts, verdicts, attention, _attention_inputs)
        elif lora and (parts := _feed_forward_parts(module, low_rank)):
            put = _put_if_equal(installed, "mlp", module, parts, verdicts, feed_forward, _linear_inputs)
        else:
            put = False
        grouped |= set(module.children()) if put else set()
    for module in list(model.modules()) if lora else ():
        if module in grouped or isinstance(module, nn.Linear):
            continue
        layer = _adapted(module, low_rank)
        if layer is not None and layer.update is not None:
            _put_if_equal(installed, "linear", module, [[layer]], verdicts, _linear, _linear_inputs)
    return installed


def _adapted(module: Any, low_rank: LowRankOf) -> Adapted | None:
    """The module as a frozen linear layer with an update or none; None where it is something else."""
    update = None if isinstance(module, nn.Linear) else low_rank(module)
    base = module if update is None else module.base_layer
    plain = type(base) is nn.Linear and not base.weight.requires_grad and base.weight.is_floating_point()
    return Adapted(base, update) if plain else None


def _can_group(parts: Parts) -> bool:
    """Whether all of these layers are plain, of one dtype, and some have an update."""
    flat = [layer for part in parts for layer in part]
    plain = [layer for layer in flat if layer is not None]
    return (
        len(plain) == len(flat)
        and any(layer.update for layer in plain)
        and (len({layer.base.weight.dtype for layer in plain}) == 1)
    )


def _norm_offset(module: Any, verdicts: dict[Any, Any], compile: bool) -> float | None:
    """What is added to the weight of an RMSNorm that is plain; None where it is none."""
    weight = getattr(module, "weight", None)
    if "RMSNorm" not in type(module).__name__ or not isinstance(weight, Tensor) or weight.dim() != 1:
        return None
    if not isinstance(_eps(module), float) or weight.requires_grad or not _takes_one(module):
        return None
    if type(module) not in verdicts:
        x = random(weight, 3, len(weight))
        verdicts[type(module)] = None
        for offset in (0.0, 1.0):
            fast = partial(rms_norm, weight=weight, eps=_eps(module), offset=offset, compile=compile)
            if same(module, fast, (x,), (), {}):
                verdicts[type(module)] = offset
                break
    found: float | None = verdicts[type(module)]
    return found


def _takes_one(module: Any) -> bool:
    """Whether its forward takes one tensor and nothing more: a gated norm takes a gate too."""
    return len(signature(module.forward).parameters) == 1


def _eps(module: Any) -> Any:
    return getattr(module, "variance_epsilon", getattr(module, "eps", None))


def _put_norm(installed: Installed, module: Any, offset: float, compile: bool) -> None:
    eps = _eps(module)
    installed.put("norm", module, lambda x: rms_norm(x, module.weight, eps, offset, compile=compile))


def _attention_parts(module: Any, low_rank: LowRankOf) -> Parts | None:
    names = ("q_proj", "k_proj", "v_proj", "o_proj")
    if not all(hasattr(module, name) for name in (*names, "head_dim", "scaling", "config")):
        return None
    if getattr(module, "attention_dropout", 0.0) or getattr(module, "sliding_window", None):
        return None
    q, k, v, o = (_adapted(getattr(module, name), low_rank) for name in names)
    return [[q, k, v], [o]]


def _feed_forward_parts(module: Any, low_rank: LowRankOf) -> Parts | None:
    names = ("gate_proj", "up_proj", "down_proj")
    if not all(hasattr(module, name) for name in (*names, "act_fn")):
        return None
    gate, up, down = (_adapted(getattr(module, name), low_rank) for name in names)
    return [[gate, up], [down]]


def _attention(module: Any, groups: tuple[Group, ...], *, compile: bool) -> Callable[..., Any]:
    joint, output = groups
    width = int(module.head_dim)
    shape = (joint.splits[0] // width, joint.splits[1] // width, width)
    plain = module.forward

    def forward(
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        bounds = kwargs.get("cu_seq_lens_q")
        if bounds is None or position_embeddings is None or past_key_values is not None or _off(module.q_proj):
            made: tuple[Tensor, None] = plain(
                hidden_states=hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
            return made
        cos, sin = position_embeddings
        qkv = joint(hidden_states)[0]
        if qkv.is_cuda:
            mixed = rotary_varlen(qkv, cos[0], sin[0], bounds, kwargs["max_length_q"], shape, module.scaling)
            return output(mixed)[None], None
        room = rotary(qkv, (cos[0], sin[0]), bounds, shape, module.scaling, output, compile=compile)
        return output.of_wide(room)[None], None

    return forward


def _feed_forward(module: Any, groups: tuple[Group, ...], *, compile: bool) -> Callable[..., Any]:
    joint, output = groups
    plain, silu = module.forward, isinstance(module.act_fn, nn.SiLU) or _is_silu(module.act_fn)

    def forward(x: Tensor) -> Tensor:
        if _off(module.gate_proj):
            made: Tensor = plain(x)
            return made
        both = joint(x)
        if not silu:
            g, u = both.chunk(2, dim=-1)
            return output(module.act_fn(g) * u)
        return output.of_wide(gated(both.reshape(-1, both.shape[-1]), output, compile=compile)).view(x.shape)

    return forward


def _linear(module: Any, groups: tuple[Group, ...]) -> Callable[..., Any]:
    (group,), plain = groups, module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or _off(module) or x.dtype != group.weight.dtype:
            made: Tensor = plain(x, *args, **kwargs)
            return made
        return group(x)

    return forward


def _off(layer: Any) -> bool:
    """Whether the layer's update is switched off just now: then its own forward knows what to do."""
    return bool(getattr(layer, "disable_adapters", False))


def _is_silu(function: Callable[[Tensor], Tensor]) -> bool:
    x = torch.linspace(-4, 4, 9)
    return bool(torch.equal(function(x), nn.functional.silu(x)))


def _put_if_equal(
    installed: Installed,
    kind: str,
    module: Any,
    parts: Parts,
    verdicts: dict[Any, bool],
    make: Callable[[Any, tuple[Group, ...]], Callable[..., Any]],
    inputs: Callable[[Any, tuple[Group, ...]], tuple[Tensor, dict[str, Any]]],
) -> bool:
    """Put ``make``'s function into ``module`` if it gives what the module gives; each class is tried once."""
    key = (kind, type(module))
    if not _can_group(parts) or verdicts.get(key) is False:
        return False
    groups = tuple(Group([layer for layer in part if layer]) for part in parts)
    forward = make(module, groups)
    if key not in verdicts:
        x, keywords = inputs(module, groups)
        with lively(groups):
            verdicts[key] = same(
                module.forward, forward, (x,), [p for each in groups for p in each.parameters], keywords
            )
    if not verdicts[key]:
        installed.left.add(type(module).__name__)
        for group in groups:
            group.release()
        return False
    installed.put(kind, module, forward)
    for group in groups:
        installed.hold(group)
    return True


def _linear_inputs(module: Any, groups: tuple[Group, ...]) -> tuple[Tensor, dict[str, Any]]:
    return random(groups[0].weight, PROBE_BOUNDS[-1], groups[0].inputs), {}


def _attention_inputs(module: Any, groups: tuple[Group, ...]) -> tuple[Tensor, dict[str, Any]]:
    """Hidden states, and positions turned by random angles, each half of a head alike."""
    like, tokens, width = groups[0].weight, PROBE_BOUNDS[-1], int(module.head_dim)
    angles = random(like.float(), 1, tokens, width // 2).repeat(1, 1, 2)
    bounds = torch.tensor(PROBE_BOUNDS, dtype=torch.int32, device=like.device)
    longest = max(b - a for a, b in pairwise(PROBE_BOUNDS))
    return random(like, 1, tokens, groups[0].inputs) * PROBE_SIZE, {
        "position_embeddings": (angles.cos().to(like.dtype), angles.sin().to(like.dtype)),
        "attention_mask": None,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }
