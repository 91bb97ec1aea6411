"""Chats: ``{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.example import ROLES, Conversation, RowFault, Turn


@dataclass(frozen=True)
class Messages:
    """What every assistant turn says is learned; the system and the user are read."""

    name: str = "messages"
    columns: str = "messages: [{role: system | user | assistant, content: text}]"

    def matches(self, columns: frozenset[str], task: str) -> bool:
        return task == "causal_lm" and "messages" in columns

    def example(self, row: Mapping[str, Any]) -> Conversation:
        messages = row.get("messages")
        if not isinstance(messages, list):
            raise RowFault(f"no list of messages (columns: {', '.join(map(str, row)) or 'none'})")
        if not messages:
            raise RowFault("messages is empty")
        turns = tuple(_turn(index, message) for index, message in enumerate(messages, start=1))
        for index, turn in enumerate(turns[1:], start=2):
            if turn.role == "system":
                raise RowFault(f"message {index} has the role system, which only the first may have")
        return Conversation(turns)


def _turn(index: int, message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise RowFault(f"message {index} is {type(message).__name__}, not {{role, content}}")
    unknown = sorted(map(str, message.keys() - {"role", "content"}))
    if unknown:
        raise RowFault(f"message {index} has {', '.join(unknown)}, which this format does not read")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise RowFault(f"message {index} has the role {role!r}; allowed: {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise RowFault(f"message {index} has {type(content).__name__} for content, not text")
    if role == "assistant" and not content.strip():
        raise RowFault(f"message {index} is an assistant turn that says nothing")
    return Turn(role, content, weight=1.0 if role == "assistant" else 0.0)


FORMAT = Messages()
