"""What a method is: which parameters are trained, and how they are put into a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BeforeValidator, Field, JsonValue

from peftctl.settings import Settings


def _as_tuple(written: Any) -> Any:
    return (written,) if isinstance(written, str) else written


Targets = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_as_tuple, json_schema_input_type=str | list[str]),
    Field(
        strict=False,
        min_length=1,
        description=(
            "Which modules get an adapter: `all-linear` (every linear layer but the head), a name (`q_proj`: every "
            "module so called), a pattern with `*`, `?` or `[...]` over the full dotted name, or a list of names "
            "and patterns. An entry that matches nothing is an error."
        ),
    ),
]


def peft(field: str) -> dict[str, JsonValue]:
    """For a setting's declaration: the field of PEFT's config that it becomes."""
    return {"peft": field}


class MethodSettings(Settings):
    """What every method has: its name."""

    shorthand: ClassVar[str] = "name"

    name: str

    @property
    def wanted(self) -> tuple[str, ...] | None:
        """The recipe's ``targets``; None where the method is to choose, () where it has none."""
        return ()


class TargetedSettings(MethodSettings):
    """Settings of a method that goes into some of a model's layers."""

    targets: Targets = ("all-linear",)

    @property
    def wanted(self) -> tuple[str, ...] | None:
        return self.targets


@dataclass(frozen=True)
class LowRank:
    """An update of a frozen linear layer: ``scale * (x down^T) up^T``; down [rank, inputs], up [outputs, rank]."""

    down: Any
    up: Any
    scale: float


@dataclass(frozen=True)
class Anatomy:
    """What counts a method's parameters: each target's (inputs, outputs), and the sizes of the model around them.

    ``width`` of the hidden vectors, ``layers``, and ``key_width``, of all keys (or values) of a layer together.
    """

    targets: Mapping[str, tuple[int, int]]
    width: int
    layers: int
    key_width: int


@dataclass(frozen=True)
class DataFacts:
    """What is known of the data before the model is built.

    ``rows`` kept for training, ``tokens`` and ``supervised_tokens`` in them, the ``longest`` row in tokens, and
    the optimizer ``steps`` of the run.
    """

    rows: int
    tokens: int
    supervised_tokens: int
    longest: int
    steps: int


class Method(Protocol):
    """A parameter-efficient fine-tuning method."""

    @property
    def name(self) -> str:
        """The word for it in a recipe."""

    @property
    def peft_type(self) -> str:
        """PEFT's name for it."""

    @property
    def settings(self) -> type[MethodSettings]:
        """Its settings, with defaults."""

    @property
    def artifact(self) -> Literal["adapter", "model"]:
        """What a run of it leaves."""

    @property
    def category(self) -> Literal["addition", "selection", "reparameterisation"]:
        """What kind of method it is, in the words of Lialin et al. 2023 (https://arxiv.org/abs/2303.15647)."""

    @property
    def learning_rate(self) -> float:
        """The peak learning rate that works for it unless the recipe says otherwise."""

    def resolve(self, settings: Any) -> MethodSettings:
        """The same settings with every default that depends on another made explicit."""

    def choose(self, model: Any) -> Sequence[str]:
        """Its own choice of targets in ``model``, as a recipe would write them: for settings that leave it open."""

    def build(self, model: Any, settings: Any, targets: Sequence[str], peft_type: str, facts: DataFacts) -> Any:
        """Put the method into ``model`` at exactly ``targets`` (full module names); returns the PEFT model.

        Raises UsageError where the settings do not go with the model or the data.
        """

    def parameters(self, settings: Any, anatomy: Anatomy) -> int:
        """How many parameters it trains, by formula."""

    def virtual_tokens(self, settings: Any) -> int:
        """How many tokens it puts before each row, for which the model gives outputs too."""

    def positions(self, settings: Any) -> int:
        """How many positions it takes before each row, of those that the model can attend to."""

    def leaves_out(self, settings: Any) -> bool:
        """Whether a forward pass of training may leave out some of what is trained, by chance."""

    def low_rank(self, layer: Any) -> LowRank | None:
        """What the method has made of a linear layer, where that is a low-rank update and nothing else; else None."""

    @property
    def penalty(self) -> Callable[[Any], Any] | None:
        """What is added to each step's loss, given the model, a scalar tensor; None for nothing."""

    def finish(self, model: Any) -> None:
        """What is left to do when training is over, before the trained model is judged and saved."""

    @property
    def after_update(self) -> Callable[[Any, int], None] | None:
        """What follows the optimizer's update, before gradients are cleared, given model and step; None for nothing."""
