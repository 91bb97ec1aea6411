"""AdaLoRA: adaptive budget allocation. Zhang et al. 2023, https://arxiv.org/abs/2303.10512

    h = W x + (alpha / r) * P diag(E) Q x        P [outputs, r], E [r], Q [r, inputs]

Training starts with ``initial_rank`` everywhere and ends with ``rank`` on average: after every update the numbers of E
that matter least, by the size of their gradients, are set to zero. P and Q are kept near orthogonal by a penalty.

Trains initial_rank * (inputs + outputs + 1) for each target. Merged into the weights it costs nothing in use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from peftctl.errors import UsageError
from peftctl.methods.contract import Anatomy, DataFacts, MethodSettings, TargetedSettings, peft
from peftctl.methods.peft_method import PeftMethod, transposed

# What PEFT's allocator keeps of every number, by the names of its attributes; and which ranks are left, once known.
IMPORTANCE = ("ipt", "exp_avg_ipt", "exp_avg_unc")
LEFT = "rank_pattern"


class AdaloraSettings(TargetedSettings):
    """Settings of AdaLoRA."""

    name: Literal["adalora"] = "adalora"
    rank: int = Field(
        8,
        ge=1,
        le=4096,
        description="Rank that is left on average over all targets.",
        json_schema_extra=peft("target_r"),
    )
    initial_rank: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="Rank of each update at the start. Default: half as much again.",
        json_schema_extra=peft("init_r"),
    )
    alpha: float | None = Field(
        None,
        gt=0,
        description="Scale of the update, which is multiplied by alpha / rank. Default: twice the initial rank.",
        json_schema_extra=peft("lora_alpha"),
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability of dropping each input of Q, while training only.",
        json_schema_extra=peft("lora_dropout"),
    )
    start: float = Field(0.1, ge=0, lt=1, description="Share of the steps before ranks begin to fall.")
    settle: float = Field(0.3, ge=0, lt=1, description="Share of the steps after ranks have fallen, at the end.")
    orthogonal: float = Field(
        0.5,
        ge=0,
        description="Weight of the penalty that keeps P and Q orthogonal.",
        json_schema_extra=peft("orth_reg_weight"),
    )


@dataclass(frozen=True)
class Adalora(PeftMethod):
    name: str = "adalora"
    peft_type: str = "ADALORA"
    settings: type[MethodSettings] = AdaloraSettings
    # The paper's own runs use 5e-4 to 2.2e-3 (its appendix, over GLUE, XSum and SQuAD).
    learning_rate: float = 1e-3

    def contradictions(self, settings: AdaloraSettings) -> Iterator[tuple[str, str, str]]:
        if settings.initial_rank is not None and settings.initial_rank < settings.rank:
            problem = f"below the rank that is to be left (found {settings.initial_rank})"
            yield "initial_rank", problem, f"at least {settings.rank}"

    def resolve(self, settings: Any) -> MethodSettings:
        self.refuse(settings)
        initial = settings.initial_rank or -(-3 * settings.rank // 2)
        alpha = settings.alpha if settings.alpha is not None else 2.0 * initial
        made: MethodSettings = settings.model_copy(update={"initial_rank": initial, "alpha": alpha})
        return made

    def config(
        self, model: Any, settings: AdaloraSettings, targets: Sequence[str], facts: DataFacts
    ) -> Mapping[str, Any]:
        # PEFT brings ranks down to the last one where they settle, so one step at least is left for it.
        start, settle = int(settings.start * facts.steps), max(1, int(settings.settle * facts.steps))
        if start >= facts.steps - settle:
            raise UsageError(
                f"method.start, method.settle: leave no step for ranks to fall in a run of {facts.steps} steps",
                "together they must be less than the whole, and the run longer than a few steps",
            )
        return {
            "total_step": facts.steps,
            "tinit": start,
            "tfinal": settle,
            "fan_in_fan_out": transposed(model, targets),
        }

    def build(self, model: Any, settings: Any, targets: Sequence[str], peft_type: str, facts: DataFacts) -> Any:
        peft_model = super().build(model, settings, targets, peft_type, facts)
        # PEFT keeps each layer's rank as a parameter, and makes a trained one of it where it casts from 16 bits.
        for name, parameter in peft_model.named_parameters():
            if ".ranknum." in name:
                parameter.requires_grad_(False)
        return peft_model

    def parameters(self, settings: AdaloraSettings, anatomy: Anatomy) -> int:
        rank = settings.initial_rank or 0
        return sum(rank * (inputs + outputs + 1) for inputs, outputs in anatomy.targets.values())

    def finish(self, model: Any) -> None:
        """Have numbers that fell to zero saved as zeros. Left out, as PEFT would have it, the sums come in another
        order, and PEFT reads the rest back in the base's 16 bits."""
        for config in model.peft_config.values():
            config.rank_pattern = None

    def state(self, model: Any) -> Mapping[str, Any]:
        """The smoothed importance of every number and how sure it is; and, once ranks have settled, which are left."""
        import torch

        allocator = model.base_model.rankallocator
        kept = {f"{part}/{name}": value for part in IMPORTANCE for name, value in getattr(allocator, part).items()}
        (config,) = model.peft_config.values()
        left = {f"{LEFT}/{name}": torch.tensor(kept) for name, kept in (config.rank_pattern or {}).items()}
        return {**kept, **left}

    def restore(self, model: Any, state: Mapping[str, Any]) -> None:
        allocator, parameters = model.base_model.rankallocator, dict(model.base_model.model.named_parameters())
        (config,) = model.peft_config.values()
        allocator.reset_ipt()
        left: dict[str, list[bool]] = {}
        for key, value in state.items():
            part, _, name = key.partition("/")
            if part == LEFT:
                left[name] = value.tolist()
            else:
                getattr(allocator, part)[name] = value.to(parameters[name].device)
        config.rank_pattern = left or None

    @property
    def penalty(self) -> Callable[[Any], Any]:
        return orthogonality

    @property
    def after_update(self) -> Callable[[Any, int], None]:
        return allocate


def orthogonality(model: Any) -> Any:
    """The mean over all P and Q of ||P^T P - I|| (Frobenius), by the recipe's weight. PEFT adds it only to a loss of
    its own, which is not the one that is trained on here."""
    import torch

    (config,) = model.peft_config.values()
    norms = []
    for name, matrix in model.named_parameters():
        if matrix.requires_grad and (".lora_A." in name or ".lora_B." in name):
            product = matrix @ matrix.T if ".lora_A." in name else matrix.T @ matrix
            norms.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device)))
    return config.orth_reg_weight * torch.stack(norms).mean()


def allocate(model: Any, step: int) -> None:
    """Set the least important singular values to zero, by this step's gradients."""
    model.base_model.update_and_allocate(step)


METHOD = Adalora()
