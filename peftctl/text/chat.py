"""Conversations as text: the tokenizer's chat template, and exactly which characters of it are learned.

Templates mark no spans, so the learned part of a turn is found by rendering twice: everything up to the turn
with the generation prompt (what inference will show the model) and everything through the turn. What the second
adds to the first is what the model is to write. A template that writes earlier turns otherwise than it wrote them
when they were the last (those that drop earlier reasoning) gets a row for each learned turn, ending with it. Where it
does not render that way either the row is refused; a mask that inference would not reproduce is never made.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from peftctl.errors import UsageError
from peftctl.example import Conversation, RowFault, Segment, Segments, Turn
from peftctl.text.deadline import OverTimeError, deadline

MOST_SECONDS = 30.0
# What code raises, and a template is code.
TEMPLATE_ERRORS = (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RuntimeError)
REFUSED = "refused by the chat template"
NOT_WRITTEN = "not written by the chat template"

Tools = Sequence[Mapping[str, Any]]


def render(turns: Sequence[Turn], tokenizer: Any, *, generation_prompt: bool, tools: Tools = ()) -> str:
    """The turns as the template writes them, in a sandbox.

    Raises RowFault with the template's own complaint, UsageError where there is no template or it takes too long.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UsageError(
            "model.name: its tokenizer has no chat template, so messages cannot be written",
            "take a model made for chat, name a template as data.template, or take rows of format prompt_completion",
        )
    if not turns:
        raise RowFault("message 1 is the assistant's, and no prompt comes before it", REFUSED)
    messages = [{"role": turn.role, "content": turn.content, **turn.fields} for turn in turns]
    try:
        with deadline(MOST_SECONDS):
            text: str = tokenizer.apply_chat_template(
                messages, tools=list(tools) or None, tokenize=False, add_generation_prompt=generation_prompt
            )
    except OverTimeError:
        raise UsageError(
            f"the chat template takes more than {MOST_SECONDS:g} seconds to write {len(turns)} messages",
            "a template of a model that you trust, or one of your own, as data.template",
        ) from None
    except (TemplateError, *TEMPLATE_ERRORS) as error:
        raise RowFault(f"the chat template refuses these messages: {error}", REFUSED) from error
    return text


def segments(conversation: Conversation, tokenizer: Any, learn: str = "assistant") -> list[Segments]:
    """The conversation as one row, or as one for each learned turn, the learned pieces through their end of turn.

    ``learn``: the turns that have a weight (assistant), the last of them alone (last), or all that the template
    writes (all), turns with a weight of their own by it. Raises RowFault where a learned turn's text is not exactly
    what follows its generation prompt, or the template leaves out what the row has.
    """
    turns, tools = conversation.turns, conversation.tools
    full = render(turns, tokenizer, generation_prompt=False, tools=tools)
    _check_tools(conversation, full, tokenizer)
    if learn == "all":
        return [_all(conversation, full, tokenizer)]
    targets = [index for index, turn in enumerate(turns) if turn.weight]
    spans = [_span(conversation, index, full, tokenizer) for index in (targets[-1:] if learn == "last" else targets)]
    if all(full.startswith(span.text) for span in spans):
        return [_row(full, spans)]
    return [_row(span.text, [span]) for span in spans]


@dataclass(frozen=True)
class _Span:
    """What a turn's model writes, ``start`` to ``end`` of ``text``, which is everything through that turn."""

    text: str
    start: int
    end: int
    weight: float


def _all(conversation: Conversation, full: str, tokenizer: Any) -> Segments:
    """All of the text, answers whose weight is not 1 by their weight."""
    weighted = [index for index, turn in enumerate(conversation.turns) if turn.role == "assistant" and turn.weight != 1]
    spans = [_span(conversation, index, full, tokenizer) for index in weighted]
    for index, span in zip(weighted, spans, strict=True):
        if not full.startswith(span.text):
            problem = f"message {index + 1} has a weight, and the chat template writes it otherwise later on"
            raise RowFault(f"{problem}, so learn: all cannot tell it from the rest", REFUSED)
    return _row(full, spans, rest=1.0)


def _row(text: str, spans: Sequence[_Span], rest: float = 0.0) -> Segments:
    """The text in pieces: spans by their weights, what stands between them by ``rest``."""
    pieces: list[Segment] = []
    written = 0
    for span in spans:
        pieces += [Segment(text[written : span.start], rest), Segment(text[span.start : span.end], span.weight)]
        written = span.end
    pieces.append(Segment(text[written:], rest))
    return Segments(tuple(piece for piece in pieces if piece.text), whole=False)


def _span(conversation: Conversation, index: int, full: str, tokenizer: Any) -> _Span:
    """Where turn ``index`` stands: from after the generation prompt through the end of the turn."""
    turns, tools = conversation.turns, conversation.tools
    prompt = render(turns[:index], tokenizer, generation_prompt=True, tools=tools)
    through = full
    if index < len(turns) - 1:
        through = render(turns[: index + 1], tokenizer, generation_prompt=False, tools=tools)
    if not through.startswith(prompt):
        raise RowFault(
            f"the chat template writes message {index + 1} differently when generating than in a history, "
            "so no mask for it would match inference",
            REFUSED,
        )
    written = through[len(prompt) :]
    # Found by its words: white space around them may be the template's own, or trimmed by it.
    content, words = turns[index].content, turns[index].content.strip()
    found = written.rfind(words) if turns[index].fields and words else written.find(words)
    at = found - (len(content) - len(content.lstrip()))
    if at < 0 or not written.startswith(content, at):
        content, at = words, found
    if at < 0:
        raise RowFault(f"the chat template does not write the text of message {index + 1} as it stands", NOT_WRITTEN)
    _check_written(turns[index], index, written)
    after = written[at + len(content) :]
    # The end-of-turn token is learned; white space after it is never generated, so it is not.
    return _Span(through, len(prompt), len(prompt) + at + len(content) + len(after.rstrip()), turns[index].weight)


def _check_written(turn: Turn, index: int, written: str) -> None:
    """Raises RowFault where a template that knows nothing of calls or reasoning leaves them out of what is learned."""
    thoughts = {key: turn.fields[key].strip() for key in ("reasoning_content", "thinking") if key in turn.fields}
    for key, thought in thoughts.items():  # which may be in the answer too
        if written.count(thought) <= turn.content.count(thought):
            raise RowFault(f"the chat template does not write the {key} of message {index + 1}", NOT_WRITTEN)
    for call in turn.fields.get("tool_calls", ()):
        name = call["function"]["name"]
        if written.count(name) <= sum(text.count(name) for text in (turn.content, *thoughts.values())):
            problem = f"the chat template does not write the call of {name} in message {index + 1}"
            raise RowFault(problem, NOT_WRITTEN)


def _check_tools(conversation: Conversation, full: str, tokenizer: Any) -> None:
    """Raises RowFault where the template does not tell the model of the tools, or leaves out what a tool said."""
    without = ""  # where names of tools may be too, as words of the messages
    if conversation.tools:
        with suppress(RowFault):
            without = render(conversation.turns, tokenizer, generation_prompt=False)
    for tool in conversation.tools:
        function = tool.get("function", tool)
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or full.count(name) <= without.count(name):
            raise RowFault(f"the chat template does not write the row's tools ({name})", NOT_WRITTEN)
    for index, turn in enumerate(conversation.turns):
        said = turn.content.strip()
        in_json = json.dumps(said, ensure_ascii=False)[1:-1]  # as Llama 3.1's template writes it
        if turn.role == "tool" and said not in full and in_json not in full:
            raise RowFault(f"the chat template does not write what the tool of message {index + 1} said", NOT_WRITTEN)
