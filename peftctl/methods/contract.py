"""What a method is: which parameters are trained, and how they are put into a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
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
    """What every method has: its name.

    ``needed`` names the settings that a recipe must say, ``paths`` those that are lists of paths, looked up beside it.
    """

    shorthand: ClassVar[str] = "name"
    needed: ClassVar[tuple[str, ...]] = ()
    paths: ClassVar[tuple[str, ...]] = ()

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
    ``beside``: the shapes of those of the model's parameters that the method trains or adapts beside its targets.
    """

    targets: Mapping[str, tuple[int, int]]
    width: int
    layers: int
    key_width: int
    beside: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


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


@dataclass(frozen=True)
class BaseName:
    """What an adapter says of the model it was trained on: a hub id with its ``commit``, or a folder."""

    name: str
    commit: str | None


class Method(Protocol):
    """A way of fine-tuning.

    What ``build`` and ``load`` return is PEFT's model, or one with the same ``get_base_model``, ``disable_adapter`` and
    ``generate``.
    """

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

    def loads_with(self, settings: Any) -> Literal["peft", "peftctl", "transformers"]:
        """What opens the folder that it saves."""

    @property
    def category(self) -> Literal["addition", "selection", "reparameterisation"]:
        """What kind of method it is, in the words of Lialin et al. 2023 (https://arxiv.org/abs/2303.15647)."""

    @property
    def paths(self) -> tuple[str, ...]:
        """Those of its settings that are lists of paths."""

    @property
    def words(self) -> str:
        """What it is, with its formula and paper, in a few lines."""

    @property
    def learning_rate(self) -> float:
        """The peak learning rate that works for it unless the recipe says otherwise."""

    def contradictions(self, settings: Any) -> Iterable[tuple[str, str, str]]:
        """Its settings that do nothing beside the others or do not go with them, as far as that is known without a
        model: each with what is wrong, and what goes or ""."""

    def resolve(self, settings: Any) -> MethodSettings:
        """The same settings with every default that depends on another made explicit.

        Raises UsageError with the settings' contradictions.
        """

    def choose(self, model: Any) -> Sequence[str]:
        """Its own choice of targets in ``model``, as a recipe would write them: for settings that leave it open."""

    def targetable(self, model: Any) -> Mapping[str, tuple[int, int]] | None:
        """The modules that ``targets`` may name, with (inputs, outputs); None for every linear layer."""

    def narrow(
        self, model: Any, settings: Any, matched: Mapping[str, tuple[int, int]]
    ) -> Mapping[str, tuple[int, int]]:
        """Those of the ``matched`` targets that the other settings leave.

        Raises UsageError where they leave none, or the settings do not go with ``model``.
        """

    def beside(self, model: Any, settings: Any) -> Mapping[str, tuple[int, ...]]:
        """Those of the model's own parameters that are trained or adapted beside the targets, with their shapes.

        Raises UsageError where the settings name some that are not there.
        """

    def built_on(self, settings: Any) -> Sequence[str]:
        """Folders of other runs or adapters that it is made of, whose base must be the recipe's."""

    def build(self, model: Any, settings: Any, targets: Sequence[str], peft_type: str, facts: DataFacts) -> Any:
        """Put the method into ``model`` at exactly ``targets`` (full module names); returns the PEFT model.

        Raises UsageError where the settings do not go with the model or the data.
        """

    def trains_own_layers(self, settings: Any) -> bool:
        """Whether some of what is trained are parameters of the model's own layers. Those are float32 then, in a model
        that may be bfloat16, and autocast must bring their products back to it."""

    def rate(self, settings: Any, name: str) -> float:
        """What the learning rate is multiplied by for the trained parameter ``name``."""

    def save(self, model: Any, settings: Any, base: BaseName, folder: Path) -> None:
        """Write what was trained into the empty ``folder``."""

    def load(self, model: Any, settings: Any, folder: Path) -> Any:
        """Put what ``save`` wrote into ``model``, a base as it comes; returns the same as ``build``, not trained."""

    def start_from(self, model: Any, settings: Any, folder: Path) -> None:
        """Give ``model``, just built, the values that another run of the method saved in ``folder``.

        Raises UsageError where they are none of this method's, or of other shapes.
        """

    def start_clash(self, settings: Any) -> tuple[str, str, str] | None:
        """The setting, by its full name, that does not go with ``train.init_from``, why, and what goes; None where all
        do."""

    def rounds(self, settings: Any) -> bool:
        """Whether what is saved is another form of what was trained, equal to it but for rounding."""

    def needs_base(self, settings: Any, folder: Path) -> str:
        """Why merging what was saved in ``folder`` takes the base model's weights all at once, or "" where each layer
        can be merged with its own weight alone, which may be nothing while the method is loaded."""

    def clash(self, settings: Any, bits: int) -> tuple[str, str, str] | None:
        """The setting that does not go with a base quantised to ``bits``, why, and what goes; None where all do."""

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

    def state(self, model: Any) -> Mapping[str, Any]:
        """What it keeps of the past beside what is trained, as tensors by name: what a checkpoint must hold."""

    def restore(self, model: Any, state: Mapping[str, Any]) -> None:
        """Have ``model``, just built, keep what ``state`` said of another at some step."""

    @property
    def after_update(self) -> Callable[[Any, int], None] | None:
        """What follows the optimizer's update, before gradients are cleared, given model and step; None for nothing."""
