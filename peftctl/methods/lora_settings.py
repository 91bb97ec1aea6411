"""LoRA's settings, and which of them do not go with each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from peftctl.methods.contract import TargetedSettings, peft

InitName = Literal["default", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora"]
FROM_WEIGHTS = ("pissa", "pissa_niter_4", "olora")
PLAIN = "default, gaussian or orthogonal"
DORA_IN_8_BITS = "bitsandbytes' 8-bit layers drop the scales that it measures weights by"
MOST_LAYERS = 10_000
RANGE = re.compile(r"(\d{1,5})(?:\s*-\s*(\d{1,5}))?\Z")


def _listed(written: Any) -> Any:
    return (written,) if isinstance(written, str | int | float) else written


def _worded(written: Any) -> Any:
    return (written,) if isinstance(written, str) else written


def _numbered(written: Any) -> Any:
    """Ranges written out: ``[0, 2-4]`` is 0, 2, 3, 4."""
    written = _listed(written)
    if not isinstance(written, list | tuple):
        return written
    numbers: list[Any] = []
    for item in written:
        if not isinstance(item, str):
            numbers.append(item)
            continue
        found = RANGE.match(item)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last <= MOST_LAYERS:
            allowed = "numbers from 0, and ranges such as 0-3"
            raise PydanticCustomError("layers", "must be numbers of layers", {"allowed": allowed})
        numbers += range(first, last + 1)
    return tuple(dict.fromkeys(numbers))


def _tokens(written: Any) -> Any:
    written = _listed(written)
    for item in written if isinstance(written, list | tuple) else ():
        if not (type(item) is int and item >= 0) and not (isinstance(item, str) and item):
            allowed = "ids, and tokens as text in quotes"
            raise PydanticCustomError("tokens", "must be tokens", {"allowed": allowed})
    return written


Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_worded, json_schema_input_type=str | list[str]),
    Field(strict=False),
]
LoraTargets = Annotated[
    Names,
    Field(
        description=(
            "Which modules get an adapter: `all-linear` (every linear layer but the head), a name (`q_proj`: every "
            "module so called), a pattern with `*`, `?` or `[...]` over the full dotted name, or a list of names "
            "and patterns. An entry that matches nothing is an error. The input embedding can be named where the "
            "output head is another matrix. `[]`: none, where target_parameters names some."
        )
    ),
]
Layers = Annotated[
    tuple[Annotated[int, Field(ge=0)], ...],
    BeforeValidator(_numbered, json_schema_input_type=int | str | list[int | str]),
    Field(strict=False, min_length=1),
]
Tokens = Annotated[
    tuple[int | str, ...],
    BeforeValidator(_tokens, json_schema_input_type=int | str | list[int | str]),
    Field(strict=False),
]
Entry = Annotated[str, Field(min_length=1)]

# What does not go together: each setting with those before it that it refuses, why, and what goes instead.
CLASHES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "lora_bias": (("dora", "DoRA scales the rows of a weight, and a bias is none", "one of the two"),),
    "target_parameters": (
        ("dropout", "their update is added to weights, not to inputs that could be dropped", "dropout 0"),
        ("dora", "PEFT has no DoRA for experts' weights", "rslora, or dora without target_parameters"),
        ("lora_bias", "experts' weights have no outputs of their own to add to", "one of the two"),
    ),
}


class LoraSettings(TargetedSettings):
    """Settings of LoRA and of the variants that differ from it by a setting."""

    name: Literal["lora"] = "lora"
    targets: LoraTargets = ("all-linear",)
    rank: int = Field(
        16, ge=1, le=4096, description="Rank of the update: the inner size of B A.", json_schema_extra=peft("r")
    )
    alpha: float | None = Field(
        None,
        gt=0,
        description="Scale of the update, which is multiplied by alpha / rank. Default: twice the rank.",
        json_schema_extra=peft("lora_alpha"),
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability of dropping each input of A, while training only.",
        json_schema_extra=peft("lora_dropout"),
    )
    layers: Layers | None = Field(
        None,
        description="Which of the decoder's layers get an adapter, counted from 0: numbers and ranges, `[0, 8-11]`. "
        "Default: all of them.",
        json_schema_extra=peft("layers_to_transform"),
    )
    rank_pattern: Mapping[Entry, Annotated[int, Field(ge=1, le=4096)]] | None = Field(
        None,
        description="Another rank for some of the targets, by name or pattern as in `targets`: `{down_proj: 32}`. "
        "Their alpha stays what `alpha` or `alpha_pattern` says.",
        json_schema_extra=peft("rank_pattern"),
    )
    alpha_pattern: Mapping[Entry, Annotated[float, Field(gt=0)]] | None = Field(
        None,
        description="Another alpha for some of the targets, by name or pattern as in `targets`.",
        json_schema_extra=peft("alpha_pattern"),
    )
    rslora: bool = Field(
        False,
        description="rsLoRA (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732): scale the update by "
        "alpha / sqrt(rank) instead of alpha / rank, so that large ranks learn as fast as small ones.",
        json_schema_extra=peft("use_rslora"),
    )
    dora: bool = Field(
        False,
        description="DoRA (Liu et al. 2024, https://arxiv.org/abs/2402.09353): train the length of each output's "
        "weights, a row of W + scale B A, apart from their direction.",
        json_schema_extra=peft("use_dora"),
    )
    init: InitName = Field(
        "default",
        description="What A and B start from. `default`: A uniform (Kaiming), B zero. `gaussian`: A normal with "
        "deviation 1 / rank, B zero. `orthogonal`: both random, with B A = 0; for even ranks "
        "(https://datta0.github.io/posts/rethink-lora-init/). `pissa`: the largest singular values of W (Meng et al. "
        "2024, https://arxiv.org/abs/2404.02948), `pissa_niter_4` the same by four rounds of a randomised method, in "
        "seconds instead of minutes. `olora`: the first columns of W's QR decomposition (Büyükakyüz 2024, "
        "https://arxiv.org/abs/2406.01775). All start from the base's own outputs. What the last three leave is an "
        "adapter of twice the rank, for the base as it was.",
        json_schema_extra=peft("init_lora_weights"),
    )
    loraplus: float | None = Field(
        None,
        ge=1,
        le=1000,
        description="LoRA+ (Hayou et al. 2024, https://arxiv.org/abs/2402.12354): how many times A's learning rate B's "
        "is, in linear layers. The paper advises 16, with a lower learning rate. Default: once.",
    )
    lora_bias: bool = Field(
        False,
        description="Add a trained bias to B: h = W x + scale (B A x + b). It merges only where W has a bias too.",
        json_schema_extra=peft("lora_bias"),
    )
    modules_to_save: Names = Field(
        (),
        description="Modules that are trained whole beside the adapter, by name or pattern: `lm_head`, `embed_tokens`, "
        "`norm`. They are saved with it, in float32. A head and an embedding that are one matrix stay one: name the "
        "embedding.",
        json_schema_extra=peft("modules_to_save"),
    )
    trainable_tokens: Tokens = Field(
        (),
        description="Tokens whose rows of the input embedding are trained: ids, or single tokens as text. Where the "
        "output head is the same matrix, its rows are trained with them.",
        json_schema_extra=peft("trainable_token_indices"),
    )
    target_parameters: Names = Field(
        (),
        description="Weights of a mixture's experts that get an adapter, by name or pattern: "
        "`mlp.experts.gate_up_proj`. Each expert gets an A and a B of its own, of rank `rank`.",
        json_schema_extra=peft("target_parameters"),
    )

    @field_validator(*CLASHES, mode="after")
    @classmethod
    def _goes_with_the_others(cls, value: Any, info: ValidationInfo) -> Any:
        for other, reason, allowed in CLASHES[str(info.field_name)] if value else ():
            if info.data.get(other):
                raise _clash(f"does not go with {other}: {reason}", allowed)
        return value

    @field_validator("init", mode="after")
    @classmethod
    def _starts(cls, value: str, info: ValidationInfo) -> str:
        ranks = {info.data.get("rank", 2), *(info.data.get("rank_pattern") or {}).values()}
        if value == "orthogonal" and any(rank % 2 for rank in ranks):
            raise _clash("needs even ranks, half for A and half for B", "an even rank, here and in rank_pattern")
        if value in FROM_WEIGHTS and info.data.get("dora"):
            reason = "a fixed part is taken off the update, which DoRA's lengths leave out"
            raise _clash(f"does not go with dora: {reason}", f"one of the two, or dora with init {PLAIN}")
        return value

    @field_validator("target_parameters", mode="after")
    @classmethod
    def _start_goes_with_experts(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("init", "default") not in ("default", "gaussian"):
            raise _clash(
                f"does not go with init {info.data['init']}, which is for linear layers", "init default or gaussian"
            )
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _goes_somewhere(cls, values: Any, handler: ModelWrapValidatorHandler[LoraSettings]) -> LoraSettings:
        made = handler(values)
        if not made.targets and not made.target_parameters:
            found = {"field_type": "Tuple", "min_length": 1, "actual_length": 0}
            fault: InitErrorDetails = {"type": "too_short", "loc": ("targets",), "input": (), "ctx": found}
            raise ValidationError.from_exception_data(cls.__name__, [fault])
        return made


def _clash(problem: str, allowed: str) -> PydanticCustomError:
    return PydanticCustomError("clash", problem, {"allowed": allowed})
