"""PEFT's X-LoRA model, made of adapters in memory, with what PEFT leaves open closed.

Of peft 0.21.2, measured: adapters are read in the base's 16 bits; the classifier is in 16 bits too; a cache that is
handed in is filled by both passes, and the logits are wrong without a word; gradient checkpointing recomputes layers
without their weights; an adapter of whose tensors some are missing starts those at random.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError, VerificationError
from peftctl.methods import continued, experts
from peftctl.methods.experts import Expert


def put(model: Any, found: Sequence[Expert], task: str, fields: Mapping[str, Any]) -> Any:
    """The adapters ``found`` put into ``model``, a base as it comes, for PEFT's ``task``, with a new classifier by
    ``fields`` of PEFT's config. Adapters that are not to be trained get no dropout.
    """
    from peft import XLoraConfig, get_peft_model

    dropout = {} if fields["use_trainable_adapters"] else {"lora_dropout": 0.0}
    with tempfile.TemporaryDirectory() as folder, _without_cache(model):
        paths = {str(number): str(Path(folder) / str(number)) for number in range(len(found))}
        for path, expert in zip(paths.values(), found, strict=True):
            experts.write(Path(path), {**expert.config, **dropout}, expert.tensors, task_type=task)
        width = model.config.get_text_config().hidden_size
        config = XLoraConfig(task_type=task, hidden_size=width, adapters=paths, **fields)
        try:
            made = get_peft_model(model, config)
        except RuntimeError as error:  # tensors of another size than the adapter's own config says
            raise UsageError(f"{experts.SETTING}: an adapter does not fit its own config: {error}") from error
    _fill(made, found)
    _keep_wide(made)
    _guard(made)
    return made


def tensors(made: Any, number: int) -> dict[str, tuple[Any, Any]]:
    """The matrices A and B of adapter ``number`` in the model, by layer."""
    from peft.tuners.lora import LoraLayer

    key = str(number)
    return {
        name: (layer.lora_A[key].weight, layer.lora_B[key].weight)
        for name, layer in made.get_base_model().named_modules()
        if isinstance(layer, LoraLayer) and key in layer.lora_A
    }


def classifier(made: Any) -> Any:
    """The module that weighs the adapters."""
    return made.base_model.internal_xlora_classifier


def config_of(made: Any, number: int) -> Any:
    """PEFT's config of adapter ``number``."""
    return made.base_model.lora_model.peft_config[str(number)]


def go_on(made: Any, number: int, saved: Expert, trained: bool, named: str) -> None:
    """Have adapter ``number`` begin where ``saved`` ended where it is ``trained``.

    Raises UsageError where it is another than the one that was saved: the classifier weighs that one. ``named``: where
    the recipe says it is.
    """
    import torch

    here, there = tensors(made, number), saved.tensors
    odd = UsageError(f"{continued.SETTING}: {saved.where} is not the adapter {named}, and the classifier weighs it")
    mine = {name: getattr(config_of(made, number), name) for name in experts.MADE_OF if name != "lora_dropout"}
    if here.keys() != there.keys() or any(saved.config.get(name) != value for name, value in mine.items()):
        raise odd
    for name, pair in here.items():
        for parameter, value in zip(pair, there[name], strict=True):
            if parameter.shape != value.shape or not (trained or torch.equal(parameter.data, value.to(parameter))):
                raise odd
            parameter.data.copy_(value)


@contextmanager
def _without_cache(model: Any) -> Iterator[None]:
    """PEFT builds only where the model's config says so; what runs the model says so again."""
    before, model.config.use_cache = model.config.use_cache, False
    try:
        yield
    finally:
        model.config.use_cache = before


def _fill(made: Any, found: Sequence[Expert]) -> None:
    """Give the adapters their numbers, in float32: PEFT reads them in the base's 16 bits.

    Raises VerificationError where they are not in the layers that they belong to, or some layer is not mixed.
    """
    import torch

    for number, expert in enumerate(found):
        there = tensors(made, number)
        if there.keys() != expert.tensors.keys():
            odd = min(there.keys() ^ expert.tensors.keys())
            raise VerificationError(f"{experts.SETTING}: {expert.where} was not put where it belongs: {odd}")
        for name, pair in expert.tensors.items():
            for parameter, value in zip(there[name], pair, strict=True):
                parameter.data = value.to(parameter.device, torch.float32)
    layers = {name for expert in found for name in expert.tensors}
    if (mixed := classifier(made).n_layers) != len(layers):
        raise VerificationError(f"{experts.SETTING}: PEFT mixes {mixed} layers of the {len(layers)} that they change")


def _keep_wide(made: Any) -> None:
    """Have the classifier, which is trained in float32, read the base's hidden states in it."""
    first = classifier(made).layers[0]
    first.register_forward_pre_hook(lambda layer, inputs: (inputs[0].to(layer.weight.dtype),))


def _guard(made: Any) -> None:
    """Refuse what PEFT's two passes compute wrong."""
    import torch

    mixture, base = made.base_model, made.get_base_model()
    plain = mixture.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        if not mixture.disabled:
            if kwargs.get("past_key_values") is not None:
                raise UsageError("xlora: computes every token twice, and cannot go on from a cache")
            if torch.is_grad_enabled() and any(getattr(m, "gradient_checkpointing", False) for m in base.modules()):
                raise UsageError(
                    "train.gradient_checkpointing: does not go with xlora, whose weights are not recomputed"
                )
        return plain(*args, **kwargs)

    mixture.forward = forward
