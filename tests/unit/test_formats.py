"""Rows to examples: what each format takes, and what it says of what it does not."""

from __future__ import annotations

from typing import Any

import pytest

from peftctl.example import Conversation, RowFault, Segment, Segments, Turn
from peftctl.formats import FORMATS

MESSAGES, PROMPT = FORMATS["messages"], FORMATS["prompt_completion"]


def refused(fmt: Any, row: Any) -> str:
    with pytest.raises(RowFault) as fault:
        fmt.example(row)
    return str(fault.value)


def said(role: Any, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_every_format_is_listed_under_its_name() -> None:
    assert all(name == fmt.name for name, fmt in FORMATS.items())


def test_messages_are_turns_of_which_the_assistant_s_are_learned() -> None:
    row = {"messages": [said("system", "s"), said("user", " q\n"), said("assistant", "a "), said("user", "")]}
    assert MESSAGES.example(row | {"id": 3}) == Conversation(
        (Turn("system", "s"), Turn("user", " q\n"), Turn("assistant", "a ", 1.0), Turn("user", ""))
    )


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({}, "no list of messages (columns: none)"),
        ({"a": 1, "b": 2}, "no list of messages (columns: a, b)"),
        ({"messages": "hi"}, "no list of messages (columns: messages)"),
        ({"messages": {"role": "user"}}, "no list of messages (columns: messages)"),
        ({"messages": []}, "messages is empty"),
        ({"messages": ["hi"]}, "message 1 is str, not {role, content}"),
        ({"messages": [said("user", "q"), None]}, "message 2 is NoneType, not {role, content}"),
        ({"messages": [said("bot", "q")]}, "message 1 has the role 'bot'; allowed: system, user, assistant"),
        ({"messages": [{"content": "q"}]}, "message 1 has the role None; allowed: system, user, assistant"),
        ({"messages": [said(["user"], "q")]}, "message 1 has the role ['user']; allowed: system, user, assistant"),
        ({"messages": [{"role": "user"}]}, "message 1 has NoneType for content, not text"),
        ({"messages": [said("user", [{"type": "text"}])]}, "message 1 has list for content, not text"),
        ({"messages": [said("assistant", " \n")]}, "message 1 is an assistant turn that says nothing"),
        ({"messages": [said("user", "q"), said("system", "s")]},
         "message 2 has the role system, which only the first may have"),
        ({"messages": [said("user", "q") | {"tool_calls": [], "name": "x"}]},
         "message 1 has name, tool_calls, which this format does not read"),
    ],
)  # fmt: skip
def test_messages_say_what_is_wrong_with_a_row(row: Any, fault: str) -> None:
    assert refused(MESSAGES, row) == fault


def test_a_completion_is_learned_and_its_prompt_is_read() -> None:
    made = PROMPT.example({"prompt": "1 + 1 =", "completion": " 2"})
    assert made == Segments((Segment("1 + 1 ="), Segment(" 2", 1.0)), whole=True)


def test_a_completion_may_have_no_prompt() -> None:
    assert PROMPT.example({"prompt": "", "completion": "x"}) == Segments((Segment("x", 1.0),))


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "p"}, "no column 'completion' (columns: prompt)"),
        ({"completion": "c", "x": 1}, "no column 'prompt' (columns: completion, x)"),
        ({}, "no column 'prompt' (columns: none)"),
        ({"prompt": None, "completion": "c"}, "prompt is NoneType, not text"),
        ({"prompt": "p", "completion": 3}, "completion is int, not text"),
        ({"prompt": "p", "completion": ""}, "completion is empty"),
    ],
)
def test_prompt_completion_says_what_is_wrong_with_a_row(row: Any, fault: str) -> None:
    assert refused(PROMPT, row) == fault


@pytest.mark.parametrize(
    ("columns", "matching"),
    [
        ({"messages"}, ["messages"]),
        ({"messages", "id"}, ["messages"]),
        ({"prompt", "completion", "id"}, ["prompt_completion"]),
        ({"prompt"}, []),
        ({"conversations"}, []),
    ],
)
def test_columns_say_which_format_a_row_has(columns: set[str], matching: list[str]) -> None:
    formats = [MESSAGES, PROMPT]
    assert [fmt.name for fmt in formats if fmt.matches(frozenset(columns), "causal_lm")] == matching
