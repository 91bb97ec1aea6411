"""Two answers, one of them better: ``{"prompt": .., "chosen": .., "rejected": ..}``, text or lists of messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.example import Conversation, Example, Preference, RowFault, Segments
from peftctl.formats.contract import WRONG_TYPE, value_of
from peftctl.formats.turns import answered, tools_of, turns_of


@dataclass(frozen=True)
class Preferences:
    """Without a prompt, ``chosen`` and ``rejected`` are whole conversations that differ in their last turns."""

    name: str = "preference"
    columns: str = "prompt, chosen, rejected: text or lists of messages (without prompt: whole conversations)"
    reads: tuple[str, ...] = ("prompt", "chosen", "rejected", "tools")
    makes: tuple[type[Example], ...] = (Preference,)

    def matches(self, columns: frozenset[str]) -> bool:
        return {"chosen", "rejected"} <= columns

    def example(self, row: Mapping[str, Any]) -> Preference:
        tools = tools_of(row.get("tools"))
        if row.get("prompt") is None:
            chosen, rejected = (_whole(row, column, tools) for column in ("chosen", "rejected"))
        else:
            chosen, rejected = (answered(row, column, tools) for column in ("chosen", "rejected"))
        if chosen == rejected:
            raise RowFault("chosen and rejected are the same", "no preference")
        return Preference(chosen, rejected)


def _whole(row: Mapping[str, Any], column: str, tools: tuple[Mapping[str, Any], ...]) -> Segments | Conversation:
    messages = value_of(row, column)
    if not isinstance(messages, list):
        raise RowFault(f"{column} is no list of messages, and there is no prompt", WRONG_TYPE)
    turns = turns_of(messages, column)
    if turns[-1].role != "assistant":
        raise RowFault(f"{column} does not end with an answer", WRONG_TYPE)
    return Conversation(turns, tools)


FORMAT = Preferences()
