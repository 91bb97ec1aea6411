"""What some of PEFT's methods need beyond their config: calls, tensors that nothing uses, things left behind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from peftctl.errors import UsageError
from peftctl.methods import prefix_cache
from peftctl.methods.contract import DataFacts
from peftctl.methods.peft_method import own_fields, transposed

Shapes = Mapping[str, tuple[int, ...]]


def _embedding(model: Any, settings: Any) -> Shapes:
    """The input embedding's weight, and the head's where it is the same one."""
    weight = model.get_input_embeddings().weight
    if odd := [index for index in settings.token_indices if not 0 <= index < len(weight)]:
        raise UsageError(
            f"method.token_indices: the model has no such token (found {', '.join(map(str, odd))}); "
            f"allowed: 0 to {len(weight) - 1}"
        )
    names = [name for name, module in model.named_modules() if getattr(module, "weight", None) is weight]
    return {f"{name}.weight": tuple(weight.shape) for name in names}


def _biases(model: Any, settings: Any) -> Shapes:
    """Those of linear layers: where there is one, it is scaled and shifted too."""
    from torch import nn

    return {
        f"{name}.bias": tuple(module.bias.shape)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.bias is not None
    }


def _shadow_shapes(model: Any, settings: Any) -> Shapes:
    """Everything that is trained: what each block gets, and the shadow, which is the model's own class with fewer
    layers."""
    import torch
    from peft import ShadowConfig
    from peft.tuners.shadow.layers import ShadowLayer
    from peft.tuners.shadow.model import ShadowModel, _get_backbone

    config = ShadowConfig(**own_fields(settings))
    width = model.config.get_text_config().hidden_size
    with torch.device("meta"):
        backbone = ShadowModel._build_shadow_backbone(SimpleNamespace(model=model), config)
        block = ShadowLayer(torch.nn.Linear(1, 1), "default", config=config, hidden_size=width)
    own = backbone.config.hidden_size
    unused = backbone.get_input_embeddings().weight if settings.share_embeddings and own == width else None
    shapes = {
        f"shadow_backbone.{name}": tuple(parameter.shape)
        for name, parameter in backbone.named_parameters()
        if parameter is not unused
    }
    if own != width:
        shapes["shadow_projection.weight"] = (width, own)
    names = _blocks(model, _get_backbone(model))
    for name in names:
        for part, parameter in block.named_parameters():
            if part.startswith("shadow_") and (name != names[-1] or ".shadow_update" not in f".{part}"):
                shapes[f"{name}.{part}"] = tuple(parameter.shape)
    return shapes


def _blocks(model: Any, backbone: Any) -> list[str]:
    from peft.tuners.shadow.model import _get_decoder_layers

    layers, _ = _get_decoder_layers(backbone)
    return [name for name, module in model.named_modules() if any(module is layer for layer in layers)]


def _freeze_unused(peft_model: Any) -> None:
    """What the last block makes of the shadow is used by nothing, nor is the shadow's own embedding beside the base's,
    which PEFT takes out of some architectures only."""
    from torch import nn

    tuner = peft_model.base_model
    last = [module for module in peft_model.modules() if hasattr(module, "shadow_update_gate")][-1]
    last.shadow_update_gate.requires_grad_(False)
    last.shadow_update_transform.requires_grad_(False)
    for name, backbone in tuner.shadow_backbone.items():
        if tuner._shadow_share_embeddings[name]:
            for module in backbone.children():
                if isinstance(module, nn.Embedding) and module.num_embeddings == backbone.config.vocab_size:
                    module.requires_grad_(False)


def _by_call(peft_model: Any) -> None:
    """Have PEFT call the model as it is then: it keeps the forward pass that the model had when it was built."""
    tuner = peft_model.base_model
    tuner.forward = tuner.model.__call__


def _as_embedding(peft_model: Any) -> None:
    """Have PEFT's layer tell its size, as the embedding that it stands for does."""
    layer = peft_model.get_base_model().get_input_embeddings()
    layer.num_embeddings, layer.embedding_dim = layer.base_layer.num_embeddings, layer.base_layer.embedding_dim


def _spans(peft_model: Any) -> dict[str, Any]:
    """The principal subspaces, which PEFT makes again of the weights: with other signs on another machine."""
    return {
        f"{name}.{side}": cache["default"]
        for name, module in peft_model.named_modules()
        if hasattr(module, "_psoft_A_cache")
        for side, cache in (("A", module._psoft_A_cache), ("B", module._psoft_B_cache))
    }


def _subspaces(peft_model: Any) -> dict[str, Any]:
    """Which outputs are in which subspace: PEFT clusters them again, by chance as another machine rounds."""
    return {
        name: module.scatter_index["default"]
        for name, module in peft_model.named_modules()
        if hasattr(module, "scatter_index")
    }


def _without_hooks(model: Any) -> None:
    """Take out the hooks that a PEFT model around ``model`` has left there."""
    from peft.tuners.tuners_utils import BaseTuner

    for hooks in (model._forward_pre_hooks, model._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), BaseTuner):
                del hooks[key]


def _without_prompts(model: Any) -> None:
    """Put the model's own attention back."""
    from peft.tuners.adaption_prompt.layer import _BaseAdaptedAttention

    for name, module in list(model.named_modules()):
        if isinstance(module, _BaseAdaptedAttention):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, module.model)


def _allocate(model: Any, step: int) -> None:
    """Have PEFT drop the subspaces that matter least, by this step's gradients."""
    model.base_model.update_and_allocate(step)


ASA = ("exp_avg_ipt_A", "exp_avg_ipt_B", "exp_avg_unc_A", "exp_avg_unc_B")


def _subspace_state(model: Any) -> dict[str, Any]:
    """How much each subspace has mattered since PEFT last looked, and which are still trained."""
    import torch

    kept: dict[str, Any] = {}
    for name, module in model.named_modules():
        for part in ASA:
            for adapter, values in getattr(module, part, {}).items():
                kept |= {f"{part}/{name}/{adapter}/{i}": v for i, v in enumerate(values) if v is not None}
    trained = {
        f"trained/{name}": torch.tensor(parameter.requires_grad)
        for name, parameter in model.named_parameters()
        if ".adamss_" in name
    }
    return {**kept, **trained}


def _restore_subspaces(model: Any, state: Mapping[str, Any]) -> None:
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    for key, value in state.items():
        part, name, *place = key.split("/")
        if part == "trained":
            parameters[name].requires_grad_(bool(value))
        else:
            adapter, index = place
            device = next(modules[name].parameters()).device
            getattr(modules[name], part)[adapter][int(index)] = value.to(device)


def _compile_nothing() -> None:
    """Have PEFT do without the CUDA extension that it would compile, anew for every layer where that fails."""
    from peft.tuners.boft import layer

    layer._FBD_CUDA = False


def _unchecked() -> None:
    """Say that sparse tensors are not to be checked, which is torch's default and which it warns of."""
    import torch

    torch.sparse.check_sparse_tensor_invariants.disable()


def _pruned_in_time(model: Any, settings: Any, targets: Sequence[str], facts: DataFacts) -> None:
    if settings.use_asa and settings.final_warmup >= facts.steps:
        raise UsageError(
            f"method.final_warmup: subspaces would not all be dropped (found {settings.final_warmup}); allowed: less "
            f"than the run's {facts.steps} steps"
        )


def _beside_a_plain_cache(model: Any, settings: Any, targets: Sequence[str], facts: DataFacts) -> None:
    prefix_cache.check(model)


def _not_transposed(model: Any, settings: Any, targets: Sequence[str], facts: DataFacts) -> None:
    if transposed(model, targets):
        raise UsageError(f"method: osf trains nothing in transposed layers (Conv1D), which {type(model).__name__} has")


# What is done before PEFT is asked for the method.
BEFORE: Mapping[str, Callable[[], None]] = {"boft": _compile_nothing, "frod": _unchecked}
# What PEFT warns of that the table of capabilities says.
KNOWN = "Detected that the base layer has no bias term"
# What raises UsageError where the settings do not go with the model or the data.
JUDGED: Mapping[str, Callable[[Any, Any, Sequence[str], DataFacts], None]] = {
    "adamss": _pruned_in_time,
    "cartridge": _beside_a_plain_cache,
    "osf": _not_transposed,
}
# What goes into ``Anatomy.beside``.
BESIDE: Mapping[str, Callable[[Any, Any], Shapes]] = {
    "glora": _biases,
    "shadow": _shadow_shapes,
    "trainable_tokens": _embedding,
}
# What is done to the PEFT model, just built or read.
BUILT: Mapping[str, Callable[[Any], None]] = {
    "adaption_prompt": _by_call,
    "shadow": _freeze_unused,
    "trainable_tokens": _as_embedding,
}
# Tensors that PEFT does not save and another machine might make otherwise: they are saved beside the adapter.
REMADE: Mapping[str, Callable[[Any], dict[str, Any]]] = {"adamss": _subspaces, "psoft": _spans}
# Methods some of whose tensors are float32 where PEFT takes them for the base's dtype.
MIXED = ("adaption_prompt", "shadow")
# What is done to a base that such a PEFT model was around, before another is put there.
BARE: Mapping[str, Callable[[Any], None]] = {"adaption_prompt": _without_prompts, "shadow": _without_hooks}
# Methods whose update is no sum of their own tensors, with why.
NEEDS_BASE = {
    "frod": "its fixed parts are made from the base's own weights",
    "osf": "what it saves belongs to the singular values of the base's own weights",
}
# What a checkpoint must hold of them beside what is trained: how it is taken, and put back.
STATE: Mapping[str, tuple[Callable[[Any], dict[str, Any]], Callable[[Any, Mapping[str, Any]], None]]] = {
    "adamss": (_subspace_state, _restore_subspaces)
}
AFTER_UPDATE: Mapping[str, Callable[[Any, int], None]] = {"adamss": _allocate}
