"""Lists of messages as turns: the shapes that OpenAI's and ShareGPT's data have, and what must hold between turns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from peftctl.example import ROLES, Conversation, RowFault, Segment, Segments, Turn
from peftctl.formats.contract import MOST, SAYS_NOTHING, WRONG_TYPE, kind_of, text_of, value_of

OUT_OF_ORDER = "roles out of order"
UNKNOWN_ROLE = "unknown role"
# What a template may write of a message beside its text.
FIELDS = ("name", "tool_calls", "tool_call_id", "reasoning_content", "thinking")
SHARE_GPT = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system",
    "tool": "tool", "observation": "tool", "function_response": "tool", "function_call": "function_call",
}  # fmt: skip


def turns_of(messages: Any, column: str, *, prompt_missing: bool = False) -> tuple[Turn, ...]:
    """The messages in ``column`` as turns. Raises RowFault naming the first that is none, or out of order.

    ``prompt_missing``: they go on where another column's messages end, so they may begin with an answer.
    """
    if not isinstance(messages, list):
        raise RowFault(f"{column} is {kind_of(messages)}, not a list of messages", WRONG_TYPE)
    if not messages:
        raise RowFault(f"{column} is empty", SAYS_NOTHING)
    turns = tuple(_turn(number, message) for number, message in enumerate(messages, start=1))
    if not prompt_missing:
        check_order(turns)
    return turns


def check_order(turns: Sequence[Turn]) -> None:
    """Raises RowFault where a system message is not the first, an answer has no question, or one side speaks twice.

    A question may follow a tool's answer, and a tool may answer more than once, as when it was called twice.
    """
    before: Turn | None = None
    for number, turn in enumerate(turns, start=1):
        role, last = turn.role, before.role if before else None
        if role == "system" and before:
            raise RowFault(f"message {number} has the role system, which only the first may have", OUT_OF_ORDER)
        if role == "assistant" and last in (None, "system"):
            raise RowFault(f"message {number} is the assistant's, and no question comes before it", OUT_OF_ORDER)
        if role == last and role in ("user", "assistant"):
            raise RowFault(f"message {number} is the {role}'s like the one before it", OUT_OF_ORDER)
        if role == "tool" and last not in ("assistant", "tool"):
            raise RowFault(f"message {number} is a tool's, and no call comes before it", OUT_OF_ORDER)
        before = turn


def answered(row: Mapping[str, Any], column: str, tools: tuple[Mapping[str, Any], ...] = ()) -> Segments | Conversation:
    """The prompt with what ``column`` answers to it, of which the answer alone is learned."""
    prompt = value_of(row, "prompt")
    if isinstance(prompt, list):
        asked = tuple(replace(turn, weight=0.0) for turn in turns_of(prompt, "prompt"))
        turns: tuple[Turn, ...] = (*asked, *turns_of(value_of(row, column), column, prompt_missing=True))
        check_order(turns)
        return Conversation(turns, tools)
    prompt, completion = text_of(row, "prompt"), text_of(row, column)
    if tools:
        raise RowFault("tools are written by the chat template, and the prompt is text, not messages", WRONG_TYPE)
    if not completion:
        raise RowFault(f"{column} is empty", SAYS_NOTHING)
    pieces = (Segment(prompt), Segment(completion, weight=1.0))
    return Segments(tuple(piece for piece in pieces if piece.text))


def tools_of(written: Any) -> tuple[Mapping[str, Any], ...]:
    """The functions a row offers: a list of JSON schemas, or the same as JSON text. Raises RowFault otherwise."""
    if isinstance(written, str):
        written = _json(written, "tools is text that is not JSON") if written.strip() else None
    if not written:
        return ()
    if not isinstance(written, list) or not all(isinstance(tool, Mapping) for tool in written):
        raise RowFault("tools is not a list of objects", WRONG_TYPE)
    return tuple(written)


def _turn(number: int, message: Any) -> Turn:
    if not isinstance(message, Mapping):
        raise RowFault(f"message {number} is {kind_of(message)}, not {{role, content}}", WRONG_TYPE)
    message = _said(message)
    if "from" in message and "role" not in message:
        message = _share_gpt(number, message)
    unknown = sorted(map(str, message.keys() - {"role", "content", "weight", *FIELDS}))
    if unknown:
        raise RowFault(f"message {number} has {', '.join(unknown)}, which this format does not read", "unknown key")
    role = message.get("role")
    if role not in ROLES:
        raise RowFault(f"message {number} has the role {role!r}; allowed: {', '.join(ROLES)}", UNKNOWN_ROLE)
    fields = _fields(number, role, {key: message[key] for key in FIELDS if message.get(key) not in (None, [], "")})
    content = _content(number, message.get("content"), needed="tool_calls" not in fields)
    if role == "assistant" and not content.strip() and "tool_calls" not in fields:
        raise RowFault(f"message {number} is an assistant turn that says nothing", SAYS_NOTHING)
    return Turn(role, content, _weight(number, role, message.get("weight")), fields)


def _fields(number: int, role: str, found: dict[str, Any]) -> dict[str, Any]:
    """What the message has beside its text: its calls in one shape, all else as it stands, which must be text."""
    calls = found.get("tool_calls", [])
    if not isinstance(calls, list):
        raise RowFault(f"message {number} has {kind_of(calls)} for tool_calls, not a list", WRONG_TYPE)
    if calls and role != "assistant":
        raise RowFault(f"message {number} is the {role}'s and has tool_calls: only the assistant calls", WRONG_TYPE)
    for key, value in found.items():
        if key != "tool_calls" and not isinstance(value, str):
            raise RowFault(f"message {number} has {kind_of(value)} for {key}, not text", WRONG_TYPE)
    return {**found, "tool_calls": [_call(number, call) for call in calls]} if calls else found


def _content(number: int, content: Any, *, needed: bool) -> str:
    """The message's text; parts that are all text are one text."""
    if isinstance(content, list) and all(
        isinstance(part, Mapping) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    ):
        content = "".join(part["text"] for part in content)
    if content is None and not needed:
        return ""
    if isinstance(content, list):
        raise RowFault(f"message {number} has content that is not text alone", WRONG_TYPE)
    if not isinstance(content, str):
        raise RowFault(f"message {number} has {kind_of(content)} for content, not text", WRONG_TYPE)
    return content


def _weight(number: int, role: str, weight: Any) -> float:
    if weight is None:
        return 1.0 if role == "assistant" else 0.0
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= MOST:
        raise RowFault(f"message {number} has the weight {weight!r}; allowed: numbers from 0", WRONG_TYPE)
    if weight and role != "assistant":
        raise RowFault(f"message {number} is the {role}'s and has a weight: only answers are learned", WRONG_TYPE)
    return float(weight)


def _call(number: int, call: Any) -> Any:
    """A tool call with its arguments as an object: OpenAI's API writes them as JSON text, templates take objects."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowFault(f"message {number} has a tool call without a function's name", WRONG_TYPE)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = _json(arguments, f"message {number} calls {function['name']} with no JSON") if arguments else None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        problem = f"message {number} calls {function['name']} with {kind_of(arguments)}, not an object"
        raise RowFault(problem, WRONG_TYPE)
    outer = _said(call) if function is not call else {}
    return {**outer, "type": "function", "function": {**_said(function), "arguments": arguments}}


def _said(written: Mapping[str, Any]) -> dict[str, Any]:
    """Without keys that are null: columnar files give every message the union of all messages' keys."""
    return {key: value for key, value in written.items() if value is not None}


def _json(text: str, problem: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowFault(f"{problem}: {error}", WRONG_TYPE) from None


def _share_gpt(number: int, message: Mapping[str, Any]) -> dict[str, Any]:
    """A message of ShareGPT's shape, ``{from, value}``, as one of OpenAI's."""
    said, others = message["from"], {key: value for key, value in message.items() if key not in ("from", "value")}
    role = SHARE_GPT.get(said) if isinstance(said, str) else None
    if role is None:
        raise RowFault(f"message {number} is from {said!r}; allowed: {', '.join(SHARE_GPT)}", UNKNOWN_ROLE)
    if role != "function_call":
        return {"role": role, "content": message.get("value"), **others}
    called = message.get("value")
    if isinstance(called, str):
        called = _json(called, f"message {number} is a function_call that is not JSON")
    return {"role": "assistant", "tool_calls": called if isinstance(called, list) else [called], **others}
