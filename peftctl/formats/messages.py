"""Chats: ``{"messages": [{"role": "user", "content": "..."}, ...]}``, or ShareGPT's ``conversations``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.example import Conversation, Example, RowFault, Turn
from peftctl.formats.contract import WRONG_COLUMNS, text_of
from peftctl.formats.turns import OUT_OF_ORDER, check_order, tools_of, turns_of

LISTS = ("messages", "conversations")


@dataclass(frozen=True)
class Messages:
    """What every assistant turn says is learned, by its weight; the system, the user and tools are read."""

    name: str = "messages"
    columns: str = "messages: [{role: system | user | assistant | tool, content: text}] (or conversations, from, value)"
    reads: tuple[str, ...] = ("messages", "conversations", "system", "tools")
    makes: tuple[type[Example], ...] = (Conversation,)

    def matches(self, columns: frozenset[str]) -> bool:
        return any(column in columns for column in LISTS)

    def example(self, row: Mapping[str, Any]) -> Conversation:
        found = [column for column in LISTS if row.get(column) is not None]
        if len(found) != 1:
            problem = "two lists of messages" if found else "no list of messages"
            raise RowFault(f"{problem} (columns: {', '.join(map(str, row)) or 'none'})", WRONG_COLUMNS)
        turns = turns_of(row[found[0]], found[0])
        if row.get("system"):
            if turns[0].role == "system":
                raise RowFault("a column system, and a system message too", OUT_OF_ORDER)
            turns = (Turn("system", text_of(row, "system")), *turns)
        check_order(turns)
        return Conversation(turns, tools_of(row.get("tools")))


FORMAT = Messages()
