"""What most tasks say: no head of their own, no settings, nothing written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from peftctl.example import Example, Turn
from peftctl.text.tokens import Encoded


class Defaults:
    """See the contract for what each of these means."""

    causal: bool = False
    head: bool = False
    packs: bool = False
    generates: bool = False
    chats: bool = False
    uses: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    overlong: str = "drop"
    pipeline: str = ""
    pooling: str = ""
    results: tuple[str, ...] = ("logits",)

    @property
    def arguments(self) -> str:
        return ""

    @property
    def classes(self) -> bool:
        return True

    def of(self, settings: Any) -> Self:
        return self

    def asks_rows(self, settings: Any) -> tuple[str, ...]:
        return ()

    def decide(self, settings: Any, examples: Sequence[Example]) -> Mapping[str, Any]:
        return {}

    def unfit(self, config: Any, tokenizer: Any) -> str:
        return ""

    def check(self, examples: Sequence[Example]) -> list[str]:
        return []

    def configure(self, config: Any) -> None:
        """Nothing: the head, if any, is the model's own."""

    def learned(self, row: Encoded, tokenizer: Any) -> str:
        return ""

    def result(self, model: Any, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        said = model(**inputs)
        return tuple(said[name] for name in self.results)

    def judge(
        self, kept: Sequence[Any], rows: Sequence[Encoded], examples: Callable[[], Sequence[Example]]
    ) -> Mapping[str, Any]:
        return {}

    def prompt(self, asked: str | Sequence[Turn], tokenizer: Any) -> list[int]:
        return []

    def asked(self, example: Example, tokenizer: Any) -> tuple[list[int], str] | None:
        return None

    def written(self, pairs: Sequence[tuple[str, str]]) -> Mapping[str, float]:
        return {}
