"""What a recipe can say. One declaration a setting; everything else about it is derived from here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from peftctl.errors import UsageError
from peftctl.methods.contract import MethodSettings
from peftctl.settings import Settings

OptimizerName = Literal["adamw", "sgd", "adafactor", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
ScheduleName = Literal["constant", "linear", "cosine"]
TrackerName = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]
LearnName = Literal["assistant", "last", "all"]
DtypeName = Literal["auto", "bfloat16", "float32"]


class ModelSettings(Settings):
    """The base model."""

    shorthand: ClassVar[str] = "name"

    name: str = Field(
        min_length=1,
        description="A hub id (`owner/name`), a folder holding config.json and safetensors, or a `.gguf` file. "
        "A relative path is looked up beside the recipe.",
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub model. Default: its main branch.")
    dtype: DtypeName = Field(
        "auto",
        description="Number type of the frozen weights and of the products. `auto`: bfloat16 where the hardware "
        "multiplies it faster, float32 elsewhere. What is trained stays float32.",
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Off unless you have read that code."
    )


class TaskSettings(Settings):
    """What the model is trained to do."""

    shorthand: ClassVar[str] = "name"

    name: str = Field("causal_lm", description="The task; it decides the model class and what rows may mean.")


class Source(Settings):
    """Rows from one file."""

    shorthand: ClassVar[str] = "path"

    path: str = Field(min_length=1, description="A JSONL file. A relative path is looked up beside the recipe.")
    format: str = Field("auto", description="What a row means. `auto` takes the one format that fits its columns.")
    limit: int | None = Field(None, ge=1, description="Use only this many rows, from the start.")
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="Refuse the file unless this is its SHA-256. The run's resolved.yaml pins it so.",
    )


class EvalSource(Settings):
    """Held-out rows: a file of their own, or a part taken from the training rows."""

    shorthand: ClassVar[str] = "path"

    path: str | None = Field(None, min_length=1, description="A JSONL file of held-out rows.")
    format: str = Field("auto", description="What a row means, as for training rows.")
    limit: int | None = Field(None, ge=1, description="Use only this many rows, from the start.")
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="Refuse the file unless this is its SHA-256. The run's resolved.yaml pins it so.",
    )
    split: float | None = Field(None, gt=0, lt=1, description="Hold out this share of the training rows.")
    count: int | None = Field(None, ge=1, description="Hold out this many of the training rows.")


class DataSettings(Settings):
    """Where rows come from and how long they may be."""

    train: Annotated[tuple[Source, ...], Field(strict=False, min_length=1, description="Rows to learn from.")]
    eval: EvalSource | None = Field(None, description="Rows to measure on. Default: none.")
    learn: LearnName = Field(
        "assistant",
        description="What of a conversation is learned: what the assistant says in every turn (`assistant`), in the "
        "last turn (`last`), or the whole text as the chat template writes it (`all`).",
    )
    max_length: int | None = Field(
        None,
        ge=8,
        description="Longest row in tokens; a longer one is dropped and counted. "
        "Default: what the model can attend to, at most 2048.",
    )


class FastSettings(Settings):
    """Ways of computing the same in less time and memory. Each is used where it was seen to be equal."""

    packed: bool = Field(
        True, description="Rows of a forward pass stand end to end, without padding, each attending to itself alone."
    )
    loss: bool = Field(
        True, description="The output head is applied to some learned tokens at a time, and their logits not kept."
    )
    lora: bool = Field(
        True, description="Low-rank updates join the products of the frozen layers they belong to, where they can."
    )
    norm: bool = Field(True, description="RMSNorm that keeps less for the backward pass.")
    compile: bool | None = Field(
        None,
        description="What stands between the matrix products goes through torch.compile: faster steps after a slow "
        "first one. Has no effect without `norm` or `lora`, and needs a C++ compiler. Default: on a CPU that has one, "
        "where 100,000 tokens or more are to be trained.",
    )


class TrainSettings(Settings):
    """The optimization."""

    epochs: float | None = Field(None, gt=0, description="Passes over the training rows. Default: 3.")
    max_steps: int | None = Field(None, ge=1, description="Optimizer steps, instead of epochs.")
    batch_size: int = Field(16, ge=1, description="Rows per optimizer step, over all processes together.")
    micro_batch_tokens: int | None = Field(
        None,
        ge=8,
        description="Most tokens, padding included, in one forward pass; a single longer row goes alone. "
        "It changes speed and memory, not the result. Default: what the device's memory allows, at most "
        "1024 on a CPU and 16384 elsewhere.",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate. Default: the method's own, which the resolved recipe shows."
    )
    schedule: ScheduleName = Field(
        "cosine", description="How the learning rate goes from its peak: stays, or falls to zero."
    )
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of the steps over which it rises to the peak.")
    optimizer: OptimizerName = Field(
        "adamw",
        description="The optimizer. Those with `8bit` keep their state in 8 bits, those with `paged` let a GPU's "
        "driver move it to host memory when memory is short; both are bitsandbytes'.",
    )
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay of what is trained.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this Euclidean norm.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass: less memory, about a third slower."
    )
    offload_activations: bool = Field(
        False,
        description="Keep what gradient checkpointing recomputes from in host memory, for long rows on a GPU.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Fixes the adapter's start, the order of rows and dropout.")
    fast: FastSettings = Field(FastSettings(), description="Ways of computing the same in less time and memory.")
    log_every: int = Field(1, ge=1, description="Optimizer steps between two step events.")


class EvalSettings(Settings):
    """Measuring on held-out rows."""

    every: int | None = Field(None, ge=1, description="Optimizer steps between evaluations. Default: at the end only.")
    choices: Annotated[tuple[str, ...], Field(strict=False, min_length=2)] | None = Field(
        None,
        description="The possible answers, where every row's last turn is one of them. Adds accuracy and macro F1 "
        "of the likeliest answer, beside always giving the commonest one.",
    )


class TrackSettings(Settings):
    """Where numbers go besides the run's own metrics.jsonl. Keys and tokens are the trackers' own affair."""

    to: Annotated[tuple[TrackerName, ...], Field(strict=False)] = Field(
        (), description="Trackers by name; each needs its package. TensorBoard writes into the run's tracking/."
    )
    project: str = Field("peftctl", min_length=1, description="What the trackers file the run under.")


@dataclass(frozen=True)
class Recipe:
    """A recipe as written: settings, never state.

    ``folder`` is where its relative paths start. ``origins`` says, by dotted key, who decided a value that is not
    simply the default. ``secrets`` are values that came from secret-sounding environment variables, with the
    reference to write in their place.
    """

    model: ModelSettings
    data: DataSettings
    method: MethodSettings
    output: str
    task: TaskSettings = field(default_factory=TaskSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    eval: EvalSettings = field(default_factory=EvalSettings)
    track: TrackSettings = field(default_factory=TrackSettings)
    folder: Path = field(default=Path(), compare=False)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    secrets: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def with_settings(self, section: str, origin: str, **updates: Any) -> Recipe:
        """The same recipe with some settings of one section replaced; ``origin`` says what decided them."""
        old: Any = getattr(self, section)
        changed: Any = old.model_copy(update=updates)
        decided = {f"{section}.{key}": origin for key, value in updates.items() if getattr(old, key) != value}
        return replace(self, origins={**self.origins, **decided}, **{section: changed})

    def path(self, written: str) -> Path:
        """A path of the recipe as the machine knows it: ``~`` opened, relative ones beside the recipe."""
        try:
            return (self.folder / Path(written).expanduser()).absolute()
        except RuntimeError:
            raise UsageError(f"{written}: there is no such user's home") from None


OUTPUT = "The run directory to make. A relative path starts where peftctl is run."

NEEDED = ("model", "data", "method", "output")

# Sections by name, in the order of a recipe; the method's settings are its method's own, see ``load``.
SECTIONS: dict[str, type[Settings]] = {
    "model": ModelSettings,
    "task": TaskSettings,
    "data": DataSettings,
    "method": MethodSettings,
    "train": TrainSettings,
    "eval": EvalSettings,
    "track": TrackSettings,
}
