"""What most methods answer where the contract asks: nothing particular."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peftctl.errors import UsageError
from peftctl.methods.contract import LowRank, MethodSettings


@dataclass(frozen=True)
class Defaults:
    """A method's facts, and the contract's answers that are the same for most."""

    name: str
    peft_type: str
    settings: type[MethodSettings]
    learning_rate: float
    category: Literal["addition", "selection", "reparameterisation"] = "reparameterisation"
    artifact: Literal["adapter", "model"] = "adapter"

    @property
    def paths(self) -> tuple[str, ...]:
        return self.settings.paths

    @property
    def words(self) -> str:
        """What its module says of itself."""
        return inspect.cleandoc(sys.modules[type(self).__module__].__doc__ or "")

    @property
    def penalty(self) -> Callable[[Any], Any] | None:
        return None

    @property
    def after_update(self) -> Callable[[Any, int], None] | None:
        return None

    def contradictions(self, settings: Any) -> Iterable[tuple[str, str, str]]:
        return ()

    def resolve(self, settings: Any) -> MethodSettings:
        resolved: MethodSettings = settings
        self.refuse(settings)
        return resolved

    def refuse(self, settings: Any) -> None:
        """Raises UsageError with the settings' contradictions, one a line."""
        found = self.contradictions(settings)
        if lines := [f"method.{name}: {why}" + (f"; allowed: {goes}" if goes else "") for name, why, goes in found]:
            raise UsageError("\n".join(lines))

    def targetable(self, model: Any) -> Mapping[str, tuple[int, int]] | None:
        return None

    def narrow(
        self, model: Any, settings: Any, matched: Mapping[str, tuple[int, int]]
    ) -> Mapping[str, tuple[int, int]]:
        return matched

    def clash(self, settings: Any, bits: int) -> tuple[str, str, str] | None:
        return None

    def built_on(self, settings: Any) -> Sequence[str]:
        return ()

    def rate(self, settings: Any, name: str) -> float:
        return 1.0

    def rounds(self, settings: Any) -> bool:
        return False

    def needs_base(self, settings: Any, folder: Path) -> str:
        return ""

    def start_clash(self, settings: Any) -> tuple[str, str, str] | None:
        return None

    def virtual_tokens(self, settings: Any) -> int:
        return 0

    def positions(self, settings: Any) -> int:
        return self.virtual_tokens(settings)

    def finish(self, model: Any) -> None:
        """Nothing."""

    def state(self, model: Any) -> Mapping[str, Any]:
        return {}

    def restore(self, model: Any, state: Mapping[str, Any]) -> None:
        """Nothing."""

    def leaves_out(self, settings: Any) -> bool:
        return False

    def low_rank(self, layer: Any) -> LowRank | None:
        return None
