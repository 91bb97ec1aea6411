"""X-LoRA: a mixture of trained LoRA adapters, weighed anew at every token. Buehler and Buehler 2024,
https://arxiv.org/abs/2402.07148

    h = W x + scale * sum_i s_i (alpha_i / rank_i) B_i A_i x        s = softmax(C(z) / temperature), one s_i an adapter

z [width] is the last hidden state that the base has for the token in a first pass over the row. The classifier C makes
the weights of it: ``depth`` linear layers, with ReLU and dropout between them. The base is frozen, and so are the
adapters unless ``train_adapters``; frozen, they have no dropout.

Trains (width + 1) * adapters * layers with a classifier of one linear layer, where layers are those that an adapter
changes, or one without ``layerwise``. It cannot be merged. In use every token is computed twice, and without a cache:
a text of n tokens takes 2 n passes over up to n tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from peftctl.atomic import write_json
from peftctl.errors import UsageError
from peftctl.methods import continued, experts, mixture
from peftctl.methods.contract import Anatomy, BaseName, DataFacts, MethodSettings, peft
from peftctl.methods.peft_method import PeftMethod, own_fields

CONFIG, WEIGHTS, ADAPTERS = "peftctl_adapter.json", "classifier.safetensors", "adapters"
HIDDEN, DROPOUT = 2048, 0.2  # PEFT's
# What makes other weights of what the classifier puts out.
MEANING = ("layerwise", "softmax", "temperature", "top_k", "scale", "first_pass")


class XLoraSettings(MethodSettings):
    """Settings of X-LoRA."""

    needed: ClassVar[tuple[str, ...]] = ("adapters",)
    paths: ClassVar[tuple[str, ...]] = ("adapters",)

    name: Literal["xlora"] = "xlora"
    adapters: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        strict=False,
        min_length=2,
        description="The LoRA adapters that are mixed, trained before on this base: run directories, or folders of "
        "adapters. Relative paths are looked up beside the recipe. Needed.",
    )
    layerwise: bool = Field(
        True,
        description="Weights of its own for every layer that an adapter changes, as in the paper, or one set for all.",
        json_schema_extra=peft("layerwise_scalings"),
    )
    depth: int = Field(
        1, ge=1, le=64, description="Linear layers of the classifier.", json_schema_extra=peft("xlora_depth")
    )
    hidden: int | None = Field(
        None,
        ge=1,
        description="Width between the layers of a classifier of two or more. Default: 2048.",
        json_schema_extra=peft("xlora_size"),
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Probability of dropping each number between the layers of a classifier of two or more, while "
        "training only. Default: 0.2.",
        json_schema_extra=peft("xlora_dropout_p"),
    )
    softmax: Literal["all", "top_k", "none"] = Field(
        "all", description="What the weights add up to one over: all adapters, the `top_k` chosen ones, or nothing."
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="With `softmax: all`, what the classifier's outputs are divided by before it: lower is sharper.",
        json_schema_extra=peft("softmax_temperature"),
    )
    top_k: int | None = Field(
        None,
        ge=1,
        description="At each token, leave out all adapters but so many with the largest weights. Default: none is.",
        json_schema_extra=peft("top_k_lora"),
    )
    scale: float = Field(
        1.0,
        gt=0,
        description="What the whole mixture is multiplied by.",
        json_schema_extra=peft("global_scaling_weight"),
    )
    first_pass: float = Field(
        0.0,
        ge=0,
        description="Weight of every adapter in the first pass, which the classifier reads. 0: the base alone.",
        json_schema_extra=peft("scaling_pass_value"),
    )
    train_adapters: bool = Field(
        False,
        description="Train the adapters on, with the classifier.",
        json_schema_extra=peft("use_trainable_adapters"),
    )


@dataclass(frozen=True)
class XLora(PeftMethod):
    name: str = "xlora"
    peft_type: str = "XLORA"
    settings: type[MethodSettings] = XLoraSettings
    category: Literal["addition", "selection", "reparameterisation"] = "addition"
    # The authors' own training of a 7B model (examples/train.ipynb of EricLBuehler/xlora). Each step of AdamW moves a
    # weight by as much as the rate times the sum of a hidden state's sizes, so wider models bear no more.
    learning_rate: float = 1e-4

    def loads_with(self, settings: Any) -> Literal["peft", "peftctl", "transformers"]:
        return "peftctl"

    def contradictions(self, settings: XLoraSettings) -> Iterator[tuple[str, str, str]]:
        return _contradictions(settings)

    def resolve(self, settings: Any) -> MethodSettings:
        self.refuse(settings)
        dropout = DROPOUT if settings.dropout is None else settings.dropout
        deep = {"hidden": settings.hidden or HIDDEN, "dropout": dropout} if settings.depth > 1 else {}
        made: MethodSettings = settings.model_copy(update=deep)
        return made

    def built_on(self, settings: XLoraSettings) -> Sequence[str]:
        experts.read(settings.adapters)  # says what is wrong with them before a base is loaded
        return settings.adapters

    def beside(self, model: Any, settings: XLoraSettings) -> Mapping[str, tuple[int, ...]]:
        """The adapters' matrices, by the names that they get in the model."""
        found = experts.read(settings.adapters)
        experts.check(found, model)
        return {
            f"{name}.lora_{part}.{number}.weight": tuple(tensor.shape)
            for number, expert in enumerate(found)
            for name, pair in expert.tensors.items()
            for part, tensor in zip("AB", pair, strict=True)
        }

    def build(self, model: Any, settings: Any, targets: Sequence[str], peft_type: str, facts: DataFacts) -> Any:
        found = experts.read(settings.adapters)
        for expert in found:
            if expert.task != peft_type:
                raise UsageError(f"{experts.SETTING}: {expert.where} is for {expert.task}; allowed: {peft_type}")
        return mixture.put(model, found, peft_type, _fields(settings))

    def parameters(self, settings: XLoraSettings, anatomy: Anatomy) -> int:
        layers = len({name.partition(".lora_")[0] for name in anatomy.beside}) if settings.layerwise else 1
        sizes = [anatomy.width, *[settings.hidden or 0] * (settings.depth - 1), len(settings.adapters) * layers]
        trained = anatomy.beside.values() if settings.train_adapters else ()
        return sum((before + 1) * after for before, after in pairwise(sizes)) + sum(map(math.prod, trained))

    def leaves_out(self, settings: XLoraSettings) -> bool:
        """With ``top_k`` an adapter may be chosen at no token of a step."""
        return settings.train_adapters and settings.top_k is not None

    def save(self, model: Any, settings: Any, base: BaseName, folder: Path) -> None:
        """The classifier, which PEFT would leave out, and the adapters, each as plain PEFT loads it."""
        from safetensors.torch import save_file

        tensors = mixture.classifier(model).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
        for number in range(len(settings.adapters)):
            made = mixture.config_of(model, number)
            named = {"task_type": made.task_type, "base_model_name_or_path": base.name, "revision": base.commit}
            config = {name: getattr(made, name) for name in experts.MADE_OF}
            experts.write(folder / ADAPTERS / str(number), config, mixture.tensors(model, number), **named)
        said = settings.model_dump(include=set(MEANING))
        write_json(folder / CONFIG, {"method": self.name, "base": base.name, "revision": base.commit, **said})

    def load(self, model: Any, settings: Any, folder: Path) -> Any:
        from safetensors.torch import load_file

        found = _saved(settings, folder)
        experts.check(found, model)
        made = mixture.put(model, found, found[0].task, _fields(settings) | {"use_trainable_adapters": False})
        mixture.classifier(made).float().load_state_dict(load_file(folder / WEIGHTS))
        return made.requires_grad_(False).eval()

    def start_from(self, model: Any, settings: Any, folder: Path) -> None:
        from safetensors.torch import load_file

        there, here = continued.read_config(folder / CONFIG), settings.model_dump(include=set(MEANING))
        odd = [f"{name} is {there.get(name)!r} there and {here[name]!r} here" for name in MEANING]
        odd = [each for each, name in zip(odd, MEANING, strict=True) if there.get(name) != here[name]]
        if odd:
            raise UsageError(f"{continued.SETTING}: {folder} has other settings: {'; '.join(odd)}")
        classifier, weights = mixture.classifier(model), load_file(folder / WEIGHTS)
        continued.check_tensors(weights, classifier.state_dict(), folder)
        for number, expert in enumerate(_saved(settings, folder)):
            mixture.go_on(model, number, expert, settings.train_adapters, settings.adapters[number])
        classifier.load_state_dict(weights)


def _contradictions(settings: XLoraSettings) -> Iterator[tuple[str, str, str]]:
    """Settings without effect, or that leave nothing to learn."""
    count = len(settings.adapters)
    for name in ("hidden", "dropout"):
        if settings.depth == 1 and getattr(settings, name) is not None:
            yield name, "has no effect on a classifier of depth 1", ""
    if settings.temperature != 1 and settings.softmax != "all":
        yield "temperature", f"has no effect with softmax: {settings.softmax}", ""
    if settings.top_k is None:
        if settings.softmax == "top_k":
            yield "softmax", "`top_k` needs method.top_k, which says how many adapters are chosen", ""
        return
    least = 2 if settings.softmax == "top_k" else 1  # the weight of one alone is one, whatever the classifier says
    if not least <= settings.top_k < max(count, 2):
        allowed = f"{least} to {count - 1}" if count > least else f"nothing with {count} adapters"
        yield "top_k", f"out of range (found {settings.top_k})", allowed
    if settings.first_pass:
        yield "first_pass", "weighs all adapters alike, so that method.top_k has nothing to choose by", ""


def _fields(settings: XLoraSettings) -> dict[str, Any]:
    """The settings as PEFT's config has them."""
    own = {name: value for name, value in own_fields(settings).items() if value is not None}
    return own | {"enable_softmax": settings.softmax == "all", "enable_softmax_topk": settings.softmax == "top_k"}


def _saved(settings: XLoraSettings, folder: Path) -> list[experts.Expert]:
    return experts.read([str(folder / ADAPTERS / str(number)) for number in range(len(settings.adapters))])


METHOD = XLora()
