"""What a recipe can say of its task."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from peftctl.settings import Settings


class TaskSettings(Settings):
    """What the model is trained to do."""

    shorthand: ClassVar[str] = "name"

    name: str = Field("causal_lm", description="The task; it decides the model class and what rows may mean.")
    labels: Annotated[tuple[str, ...], Field(strict=False, min_length=2)] | None = Field(
        None,
        description="The classes or tags, in the order of their numbers. Default: all that the training rows have. A "
        "row with another one is a bad row.",
    )
    problem: Literal["single", "multi", "regression", "retrieval", "similarity"] | None = Field(
        None,
        description="For seq_cls, what a text's label is: one class (`single`), any number of classes (`multi`), or a "
        "number (`regression`). For feature_extraction, what is learned: which texts belong together (`retrieval`), or "
        "how alike two are (`similarity`). Default: by the rows.",
    )
    pooling: Literal["mean", "cls", "last"] | None = Field(
        None,
        description="What of its tokens' vectors is a text's: their mean, the first, or the last one. Default: mean.",
    )
    temperature: float | None = Field(
        None,
        gt=0,
        le=1,
        description="What cosines are divided by before texts are told apart by them. Default: 0.05.",
    )
    no_answer: bool | None = Field(
        None,
        description="Whether a question may have no answer in its text. Default: whether some training row has none.",
    )
    stride: int | None = Field(
        None,
        ge=0,
        description="Tokens of a text that two neighbouring windows share, where it is too long for one: at most half "
        "of what a window holds. Default: 128.",
    )
    max_answer_tokens: int | None = Field(
        None, ge=1, description="The longest answer that is looked for, in tokens. Default: 30."
    )
