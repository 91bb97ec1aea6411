"""What PEFT's config classes and layers take, where they check it themselves, said before anything is built."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

_FROM_MODEL = "is read from the model"
_BY_TARGETS = "is said by targets here, with a pattern such as `model.layers.[0-3].*`"
_BY_RUN = "is written by the run"

# Fields of PEFT's configs that are no settings, and why.
RESERVED: Mapping[str, str] = {
    "task_type": "follows from task.name",
    "peft_type": "follows from method.name",
    "auto_mapping": _BY_RUN,
    "peft_version": _BY_RUN,
    "base_model_name_or_path": "is model.name here",
    "revision": "is model.revision here",
    "inference_mode": "is no setting of training",
    "target_modules": "is spelled targets here",
    "exclude_modules": "is said by targets here, which names what is adapted",
    "layers_to_transform": _BY_TARGETS,
    "layers_pattern": _BY_TARGETS,
    "fan_in_fan_out": _FROM_MODEL,
    "token_dim": _FROM_MODEL,
    "num_transformer_submodules": _FROM_MODEL,
    "num_attention_heads": _FROM_MODEL,
    "num_layers": _FROM_MODEL,
    "modules_to_save": "is not offered: what is trained is the method's own",
    "bias": "is not offered: PEFT changes the model's own biases then, with the adapter off too; bitfit trains them",
    "apply_GS": "is not offered: PEFT starts with pairs of equal vectors, which cannot be made orthogonal",
    "boft_n_butterfly_factor": "is not offered: for more than 1 PEFT compiles a CUDA extension of its own",
    "use_dynamic_rank": "is not offered: how many parameters are trained could not be known beforehand, and checked",
    "svd_threshold": "is not offered, as use_dynamic_rank is not",
    "mask_type": "is not offered: PEFT has one",
    "poly_type": "is not offered: PEFT has one",
    "progressbar": "is not offered: what is shown is peftctl's affair",
    "runtime_offload_base_weight": "is not offered: it moves the base away from its device behind the run's back",
    "sample_at_inference": "is not offered: the same prompt would get other answers each time, and no reload is equal",
    "target_svd_config": "is not offered: rank_pattern says the same by target",
    "shadow_model": "is not offered: the shadow is a small copy of the model itself",
    "init_weights": "is not offered: the other way to start is for PEFT's own tests",
    "auxiliary_loss_weight": "is not offered: PEFT adds it to a loss of its own, which is not the one trained on here",
}

# Fields that say by target, and what they say of it. PEFT declares them as any mapping.
BY_TARGET: Mapping[tuple[str, str], type] = {
    ("c3a", "block_size_pattern"): int,
    ("delora", "lambda_pattern"): float,
    ("delora", "rank_pattern"): int,
    ("fourierft", "n_frequency_pattern"): int,
    ("osf", "rank_pattern"): float,
    ("waveft", "n_frequency_pattern"): int,
}
# Settings that have no default.
NEEDED: Mapping[str, tuple[str, ...]] = {"trainable_tokens": ("token_indices",)}

# Methods whose ``init_weights`` is a choice for all that.
STARTS = ("c3a", "fourierft", "hira", "miss", "tinylora", "waveft")

# Fields of one method's config that do nothing in PEFT as it is.
NO_EFFECT: Mapping[tuple[str, str], str] = {
    ("deft", "init_scale"): "is not offered: PEFT scales by it a start that is for its own tests",
    ("hira", "rank_pattern"): "is not offered: PEFT reads it and takes r for all",
    ("oft", "module_dropout"): "is not offered: PEFT makes the dropout and never applies it",
    ("psoft", "psoft_alpha"): "is not offered: PEFT divides by it what it multiplies by it",
}


def why_not(method: str, field: str) -> str:
    """Why a field of PEFT's config is no setting here, or "" where it is one."""
    if field == "init_weights" and method in STARTS:
        return ""
    return NO_EFFECT.get((method, field), RESERVED.get(field, ""))


_SHARE = {"ge": 0, "lt": 1}
_SOME = {"ge": 1}

# By the field's name in whatever config, as a regular expression.
SHARED_LIMITS: Mapping[str, Mapping[str, Any]] = {
    r".*dropout": _SHARE,
    r"r|topk|u|depth_.*|n_frequency|num_vectors|vector_length|mini_r|block_size": _SOME,
    r".*_beta": _SHARE,
    r"shadow_(num|hidden|intermediate).*|update_hidden_size": _SOME,
}

LIMITS: Mapping[tuple[str, str], Mapping[str, Any]] = {
    ("adamss", "num_subspaces"): _SOME,
    ("adamss", "subspace_rank"): _SOME,
    ("adamss", "asa_target_subspaces"): _SOME,
    ("adamss", "mask_interval"): _SOME,
    ("adamss", "init_warmup"): {"ge": 0},
    ("adamss", "asa_schedule_exponent"): {"gt": 0},
    ("adaption_prompt", "adapter_len"): _SOME,
    ("adaption_prompt", "adapter_layers"): _SOME,
    ("boft", "boft_block_size"): {"ge": 0},
    ("boft", "boft_block_num"): {"ge": 0},
    ("cartridge", "num_virtual_tokens"): {"ge": 1, "le": 4096},
    ("cartridge", "num_frozen_tokens"): {"ge": 0},
    ("frod", "sparse_rate"): {"ge": 0, "le": 1},
    ("frod", "regularization_alpha"): {"gt": 0},
    ("gralora", "gralora_k"): _SOME,
    ("gralora", "hybrid_r"): {"ge": 0},
    ("lily", "stride_A"): _SOME,
    ("lily", "num_B"): {"ge": 2},
    ("oft", "r"): {"ge": 0},
    ("oft", "oft_block_size"): {"ge": 0},
    ("oft", "num_cayley_neumann_terms"): _SOME,
    ("osf", "effective_rank"): {"gt": 0},
    ("peanut", "depth"): {"ge": 0},
    ("psoft", "num_cayley_neumann_terms"): _SOME,
    ("psoft", "cayley_neumann_eps"): {"gt": 0, "lt": 1},
    ("psoft", "psoft_svd_lowrank_niter"): {"ge": 0},
    ("road", "group_size"): {"ge": 2},
    ("supertuning", "sparsity"): _SHARE,
    ("tinylora", "weight_tying"): {"ge": 0, "le": 1},
    ("trainable_tokens", "token_indices"): {"min_length": 1},
    ("unilora", "theta_d_length"): _SOME,
    ("unilora", "init_theta_d_bound"): {"gt": 0},
}

Found = Iterator[tuple[str, str]]


def _starts(settings: Any) -> Found:
    if settings.init_weights is False:
        yield "init_weights", "is for PEFT's own tests where it is false"


def _adamss(settings: Any) -> Found:
    yield from _idle(settings, "use_asa", True, "asa_target_subspaces", "init_warmup", "final_warmup", "mask_interval",
                     "asa_importance_beta", "asa_uncertainty_beta", "asa_schedule_exponent")  # fmt: skip
    if settings.use_asa and settings.init_warmup >= settings.final_warmup:
        yield "init_warmup", f"must be less than final_warmup, which is {settings.final_warmup}"
    elif settings.use_asa and settings.final_warmup % settings.mask_interval:
        yield (
            "mask_interval",
            f"must divide final_warmup, which is {settings.final_warmup}: the target is reached there",
        )


def _boft(settings: Any) -> Found:
    yield from _either(settings, "boft_block_size", "boft_block_num")


def _cartridge(settings: Any) -> Found:
    if settings.num_frozen_tokens >= settings.num_virtual_tokens:
        yield "num_frozen_tokens", f"must be less than num_virtual_tokens, which is {settings.num_virtual_tokens}"


def _glora(settings: Any) -> Found:
    if {settings.config_A_B, settings.config_C, settings.config_D_E} == {"none"}:
        yield "config_A_B", "and config_C and config_D_E are all none, which leaves nothing to train"
    elif "lora" not in (settings.config_A_B, settings.config_C):
        yield from _unused(settings, "r", "without config_A_B or config_C: lora")


def _gralora(settings: Any) -> Found:
    if settings.r % settings.gralora_k:
        yield "r", f"must be a multiple of gralora_k, which is {settings.gralora_k}"


def _hra(settings: Any) -> Found:
    if settings.r % 2:
        yield "r", "must be even: reflections start in pairs that undo each other"


def _miss(settings: Any) -> Found:
    yield from _starts(settings)
    yield from _idle(settings, "init_weights", "mini", "mini_r")


def _oft(settings: Any) -> Found:
    yield from _either(settings, "oft_block_size", "r")
    yield from _idle(settings, "coft", True, "eps")
    yield from _idle(settings, "use_cayley_neumann", True, "num_cayley_neumann_terms")


def _psoft(settings: Any) -> Found:
    yield from _idle(settings, "psoft_svd", "lowrank", "psoft_svd_lowrank_niter")
    yield from _idle(settings, "use_cayley_neumann", True, "num_cayley_neumann_terms", "cayley_neumann_eps")


def _randlora(settings: Any) -> Found:
    if settings.sparse and settings.very_sparse:
        yield "very_sparse", "and sparse say the same of other shares: one of them"


def _road(settings: Any) -> Found:
    if settings.group_size % 2:
        yield "group_size", "must be even: outputs are turned in pairs"


def _supertuning(settings: Any) -> Found:
    if settings.r is None:
        yield from _unused(settings, "lora_alpha", "without r")
        yield from _unused(settings, "lora_dropout", "without r")


def _vblora(settings: Any) -> Found:
    if settings.topk >= settings.num_vectors:
        yield "topk", f"must be less than num_vectors, which is {settings.num_vectors}"


RULES: Mapping[str, Callable[[Any], Found]] = {
    "adamss": _adamss,
    "boft": _boft,
    "cartridge": _cartridge,
    "glora": _glora,
    "gralora": _gralora,
    "hira": _starts,
    "hra": _hra,
    "miss": _miss,
    "oft": _oft,
    "psoft": _psoft,
    "randlora": _randlora,
    "road": _road,
    "supertuning": _supertuning,
    "tinylora": _starts,
    "vblora": _vblora,
}

# Two settings that say the same, of which PEFT takes the one that is not 0: what is written is meant.
EITHER: Mapping[str, tuple[str, str]] = {
    "boft": ("boft_block_size", "boft_block_num"),
    "oft": ("oft_block_size", "r"),
}


def _either(settings: Any, one: str, other: str) -> Found:
    sizes = {name: getattr(settings, name) for name in (one, other)}
    written = [name for name in sizes if sizes[name] and name in settings.model_fields_set]
    if len(written) == 2:
        yield other, f"and {one} say the same: one of them, the other 0"
    elif not any(sizes.values()):
        yield one, f"and {other} are both 0: one of them says how large blocks are"


def _idle(settings: Any, switch: str, on: Any, *names: str) -> Found:
    """Settings that do nothing unless ``switch`` is ``on``."""
    if getattr(settings, switch) != on:
        for name in names:
            yield from _unused(settings, name, f"without {switch}: {str(on).lower()}")


def _unused(settings: Any, name: str, without: str) -> Found:
    if getattr(settings, name) != type(settings).model_fields[name].default:
        yield name, f"has no effect {without}"
