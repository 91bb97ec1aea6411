"""adapter_config.json as far as it can be trusted: every field is asked for with the kind of value it must have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftctl.errors import UsageError
from peftctl.inspection.bounded import is_file, json_object, names
from peftctl.methods import METHODS
from peftctl.nearest import nearest
from peftctl.tables import table

NAME = "adapter_config.json"


def _whole(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63


def _number(value: Any) -> bool:
    return _whole(value) or isinstance(value, float)


def _word(value: Any) -> bool:
    return isinstance(value, str)


def _words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _word_or_words(value: Any) -> bool:
    return _word(value) or _words(value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


# The fields that are read here: what each may hold beside null, and the word for it.
KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("r", "init_r", "num_virtual_tokens", "token_dim"), (_whole, "a whole number")),
    **dict.fromkeys(("lora_alpha", "alpha"), (_number, "a number")),
    **dict.fromkeys(("peft_type", "task_type", "peft_version", "base_model_name_or_path", "revision"), (_word, "text")),
    **dict.fromkeys(("use_rslora", "use_dora", "fan_in_fan_out"), (_flag, "true or false")),
    **dict.fromkeys(("target_modules", "exclude_modules"), (_word_or_words, "text or a list of texts")),
    **dict.fromkeys(("modules_to_save", "target_parameters"), (_words, "a list of texts")),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), (lambda value: isinstance(value, Mapping), "an object")),
}  # fmt: skip


@dataclass(frozen=True)
class AdapterConfig:
    """The fields of an adapter's config. A field that holds another kind of value than it must is as one not there."""

    fields: Mapping[str, Any]

    @property
    def peft_type(self) -> str:
        return self.word("peft_type") or ""

    @property
    def method(self) -> str | None:
        """Our name for it, where it is a method here."""
        return next((name for name, method in METHODS.items() if method.peft_type == self.peft_type), None)

    def whole(self, name: str) -> int | None:
        value = self._of(name)
        return value if _whole(value) else None

    def number(self, name: str) -> float | None:
        value = self._of(name)
        return float(value) if _number(value) else None

    def word(self, name: str) -> str | None:
        value = self._of(name)
        return value if isinstance(value, str) else None

    def words(self, name: str) -> tuple[str, ...]:
        value = self._of(name)
        return tuple(value) if _words(value) else ()

    def flag(self, name: str) -> bool:
        return self._of(name) is True

    def numbers(self, name: str) -> dict[str, float]:
        """A pattern field: numbers by what they are for; what is no number is left out."""
        value = self._of(name)
        return {key: float(each) for key, each in value.items() if _number(each)} if isinstance(value, Mapping) else {}

    def _of(self, name: str) -> Any:
        return self.fields.get(name)

    def wrong(self) -> list[str]:
        """What stands in a field that must hold something else."""
        found = []
        for name, (check, kind) in KINDS.items():
            value = self._of(name)
            if value is not None and not check(value):
                found.append(f"{name} must be {kind} (found {str(value)[:40]!r})")
        return found

    def unknown(self) -> list[str]:
        """Fields that the pinned peft does not have for this method, with the nearest that it has."""
        known = table("peft_configs")["methods"].get(self.peft_type.lower())
        if known is None:
            return []
        others = [name for name in self.fields if name not in known]
        said = [f"{name[:80]}{_meant(nearest(name, known))}" for name in others[:5]]
        return said + ([f"{len(others) - 5:,} more"] if len(others) > 5 else [])


def _meant(near: str) -> str:
    return f" (did you mean {near}?)" if near else ""


def read_config(folder: Path) -> AdapterConfig:
    """The config of the adapter in ``folder``. Raises UsageError where there is none that says what it is of."""
    path = folder / NAME
    there = names(folder)
    if NAME not in there:
        below = [name for name in there if is_file(folder / name / NAME)]
        raise UsageError(
            f"{folder} holds no {NAME}, so it is no adapter", f"{folder / below[0]} is one" if below else ""
        )
    config = AdapterConfig(json_object(path))
    if not config.peft_type:
        raise UsageError(f"{path} has no peft_type, so it does not say which method the adapter is of")
    return config
