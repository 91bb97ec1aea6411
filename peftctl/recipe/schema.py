"""What a recipe can say. One declaration a setting; everything else about it is derived from here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from peftctl.errors import UsageError
from peftctl.methods.contract import MethodSettings
from peftctl.recipe.task_settings import TaskSettings
from peftctl.settings import Settings

OptimizerName = Literal["adamw", "sgd", "adafactor", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]
ScheduleName = Literal["constant", "linear", "cosine"]
TrackerName = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]
LearnName = Literal["assistant", "last", "all"]
OverlongName = Literal["drop", "truncate_end", "truncate_start", "split"]
BadRowName = Literal["error", "drop"]
SHA256 = "^[0-9a-f]{64}$"
DURATION = r"^([0-9]+[dhms])+$"
DtypeName = Literal["auto", "bfloat16", "float32"]


class QuantizationSettings(Settings):
    """How the frozen linear layers are kept. Dettmers et al. 2023 (QLoRA), https://arxiv.org/abs/2305.14314"""

    bits: Literal[4, 8] = Field(4, description="Bits of a weight: 4, or 8 (LLM.int8()).")
    type: Literal["nf4", "fp4"] = Field(
        "nf4",
        description="Numbers that 4 bits stand for: those of a normal distribution, or small floating-point ones.",
    )
    double_quant: bool = Field(True, description="With 4 bits, keep their scales in 8 bits too.")


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
    quantization: QuantizationSettings | None = Field(
        None, description="Keep the frozen linear layers in 4 or 8 bits: QLoRA, and the same with other methods."
    )
    trust_remote_code: bool = Field(
        False, description="Run Python code that comes with the model. Off unless you have read that code."
    )


class RowSettings(Settings):
    """Where rows stand and what they mean."""

    shorthand: ClassVar[str] = "path"

    path: str | None = Field(None, min_length=1)

    format: str = Field("auto", description="What a row means. `auto` takes the one format that fits its columns.")
    columns: Mapping[str, str] | None = Field(
        None,
        description="Which column of the rows holds what the format calls otherwise: `{prompt: question}` reads "
        "`prompt` from the column question.",
    )
    filter: str | None = Field(
        None,
        min_length=1,
        description="Take only rows for which this Jinja expression over their columns is true: "
        "`language == 'en' and messages | length > 1`.",
    )
    limit: int | None = Field(None, ge=1, description="Use only this many rows that pass the filter, from the start.")
    config: str | None = Field(None, min_length=1, description="Which configuration of a hub data set.")
    hub_split: str | None = Field(
        None, min_length=1, description="Which split of a hub data set. Default: train, or the only one."
    )
    revision: str | None = Field(
        None, min_length=1, description="Branch, tag or commit of a hub data set. Default: its main branch."
    )
    sha256: str | None = Field(
        None,
        pattern=SHA256,
        description="Refuse the file unless this is its SHA-256. The run's resolved.yaml pins it so.",
    )


PATH = (
    "A file (.jsonl, .json, .csv, .tsv, .parquet, .arrow or .txt, the text ones also as .gz or .zst), a URL that "
    "fsspec opens, or the id of a hub data set (`owner/name`). A relative path is looked up beside the recipe."
)


class Source(RowSettings):
    """Rows to learn from: one file, or one hub data set."""

    path: str = Field(min_length=1, description=PATH)
    weight: float = Field(
        1.0,
        gt=0,
        le=1000,
        description="How often an epoch takes each of its rows: 2 twice, 0.5 half of them, the same ones every time. "
        "Where rows are streamed, how many of its rows are taken for one of a source of weight 1.",
    )


class EvalSource(RowSettings):
    """Held-out rows: a file of their own, or a part taken from the training rows."""

    path: str | None = Field(None, min_length=1, description=PATH)
    split: float | None = Field(None, gt=0, lt=1, description="Hold out this share of the training rows.")
    count: int | None = Field(
        None, ge=1, description="Hold out this many of the training rows; where rows are streamed, the first."
    )


class DataSettings(Settings):
    """Where rows come from and how long they may be."""

    train: Annotated[tuple[Source, ...], Field(strict=False, min_length=1, description="Rows to learn from.")]
    eval: EvalSource | None = Field(None, description="Rows to measure on. Default: none.")
    learn: LearnName = Field(
        "assistant",
        description="What of a conversation is learned: what the assistant says in every turn (`assistant`), in the "
        "last turn (`last`), or the whole text as the chat template writes it (`all`).",
    )
    template: str | None = Field(
        None,
        min_length=1,
        description="How conversations are written: `chatml`, `llama3`, `gemma`, `mistral`, a Jinja file, or Jinja "
        "text. It is saved with the adapter. Default: the tokenizer's own chat template.",
    )
    max_length: int | None = Field(
        None,
        ge=8,
        description="Longest row in tokens; `overlong` says what becomes of longer ones. "
        "Default: what the model can attend to, at most 2048.",
    )
    overlong: OverlongName | None = Field(
        None,
        description="What becomes of a row longer than max_length: it is left out (`drop`), keeps its beginning "
        "(`truncate_end`) or its end (`truncate_start`), or becomes several rows (`split`). All are counted. "
        "Default: `drop`; `truncate_end` for seq_cls and feature_extraction, `split` for question_answering.",
    )
    on_bad_row: BadRowName = Field(
        "error",
        description="What becomes of a row that cannot be read or understood: the run ends before it begins and names "
        "the rows (`error`), or they are left out and counted by reason (`drop`).",
    )
    max_bad_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        description="With on_bad_row: drop, the share of bad rows above which the run ends anyway.",
    )
    streaming: bool = Field(
        False,
        description="Read rows while training instead of before, for sets larger than memory. Needs train.max_steps; "
        "rows are shuffled within some thousand at a time.",
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
    max_time: str | None = Field(
        None,
        pattern=DURATION,
        description="Stop after so long (`90m`, `1h30m`, `2d`), with a checkpoint and exit code 75: the same command "
        "then goes on.",
    )
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
    init_from: str | None = Field(
        None,
        min_length=1,
        description="Go on from what another run trained, on the same base with the same method and sizes: its run "
        "directory, or an adapter's folder. The optimizer and the steps start anew.",
    )
    fast: FastSettings = Field(FastSettings(), description="Ways of computing the same in less time and memory.")
    log_every: int = Field(1, ge=1, description="Optimizer steps between two step events.")
    log_rows: bool = Field(
        False,
        description="Log the loss of every row at every step, for `peftctl inspect RUN --step N`. Each step then waits "
        "for the device.",
    )
    save_every: int | None = Field(
        None,
        ge=1,
        description="Optimizer steps between two checkpoints. Default: by the clock, one every ten minutes. When "
        "training stops or ends there is one in any case.",
    )
    keep_checkpoints: int = Field(
        2, ge=1, description="How many checkpoints are kept: the newest ones, and the best beside them."
    )
    deterministic: bool = Field(
        False,
        description="Have torch refuse what gives other bits each time it is computed. A CPU gives the same without; "
        "a GPU then takes slower ways.",
    )


class GenerateSettings(Settings):
    """Letting the model answer held-out rows, and scoring what it writes."""

    max_new_tokens: int = Field(64, ge=1, description="Most tokens to write for a row.")
    limit: int | None = Field(None, ge=1, description="Answer only the first so many rows. Default: all.")


class EvalSettings(Settings):
    """Measuring on held-out rows."""

    every: int | None = Field(None, ge=1, description="Optimizer steps between evaluations. Default: at the end only.")
    best: bool = Field(
        False,
        description="Publish what measured best (the lowest held-out loss) of the evaluations and the end, instead of "
        "the last. A checkpoint is saved at each new best. Needs `every`.",
    )
    choices: Annotated[tuple[str, ...], Field(strict=False, min_length=2)] | None = Field(
        None,
        description="The possible answers, where every row's last turn is one of them. Adds accuracy and macro F1 "
        "of the likeliest answer, beside always giving the commonest one.",
    )
    generate: GenerateSettings | None = Field(
        None,
        description="Let the trained model answer, the likeliest token each time, at the end and in `peftctl eval`: "
        "exact match, and for seq2seq_lm BLEU, chrF and ROUGE. `{}` takes the defaults.",
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

    def with_sources(self, origin: str, found: Callable[[RowSettings], Mapping[str, Any]]) -> Recipe:
        """The same recipe with what ``found`` says of each source of rows put into it."""
        train: list[Source] = []
        decided: dict[str, str] = {}
        held_out = self.data.eval
        for number, source in enumerate(self.data.train):
            updates = dict(found(source))
            train.append(source.model_copy(update=updates))
            decided |= {
                f"data.train[{number}].{key}": origin for key in updates if updates[key] != getattr(source, key)
            }
        if held_out is not None and held_out.path is not None:
            updates = dict(found(held_out))
            decided |= {f"data.eval.{key}": origin for key in updates if updates[key] != getattr(held_out, key)}
            held_out = held_out.model_copy(update=updates)
        data = self.data.model_copy(update={"train": tuple(train), "eval": held_out})
        return replace(self, data=data, origins={**decided, **self.origins})  # a path made absolute stays the recipe's

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
