"""Conversations as text: the tokenizer's chat template, and exactly which characters of it are learned.

Templates mark no spans, so the learned part of a turn is found by rendering twice: everything up to the turn
with the generation prompt (what inference will show the model) and everything through the turn. What the second
adds to the first is what the model is to write. Where the template does not render that way the row is refused;
a mask that inference would not reproduce is never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from peftctl.errors import UsageError
from peftctl.example import Conversation, RowFault, Segment, Segments, Turn


def render(turns: Sequence[Turn], tokenizer: Any, *, generation_prompt: bool) -> str:
    """The turns as the template writes them.

    Raises RowFault with the template's own complaint, UsageError where there is no template.
    """
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UsageError(
            "model.name: its tokenizer has no chat template, so messages cannot be written",
            "take a model made for chat, or rows of format prompt_completion",
        )
    if not turns:
        raise RowFault("message 1 is the assistant's, and no prompt comes before it")
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:  # template code is code
        raise RowFault(f"the chat template refuses these messages: {error}") from error
    return text


def segments(conversation: Conversation, tokenizer: Any, learn: str = "assistant") -> Segments:
    """The whole conversation as pieces, the learned ones through their end-of-turn token.

    ``learn``: the turns that have a weight (assistant), the last of them alone (last), or all that the template
    writes (all). Raises RowFault where a learned turn's text is not exactly what follows its generation prompt.
    """
    turns = conversation.turns
    full = render(turns, tokenizer, generation_prompt=False)
    if learn == "all":
        return Segments((Segment(full, 1.0),), whole=False)
    if learn == "last":
        last = max((index for index, turn in enumerate(turns) if turn.weight), default=-1)
        turns = tuple(turn if index == last else replace(turn, weight=0.0) for index, turn in enumerate(turns))
    pieces: list[Segment] = []
    written = 0
    for index, turn in enumerate(turns):
        if turn.weight == 0.0:
            continue
        start, end = _learned_span(turns, index, full, tokenizer)
        pieces += [Segment(full[written:start]), Segment(full[start:end], turn.weight)]
        written = end
    pieces.append(Segment(full[written:]))
    return Segments(tuple(piece for piece in pieces if piece.text), whole=False)


def _learned_span(turns: Sequence[Turn], index: int, full: str, tokenizer: Any) -> tuple[int, int]:
    """Where turn ``index`` stands in ``full``: from after the generation prompt through the end of the turn."""
    prompt = render(turns[:index], tokenizer, generation_prompt=True)
    through = full if index == len(turns) - 1 else render(turns[: index + 1], tokenizer, generation_prompt=False)
    if not (through.startswith(prompt) and full.startswith(through)):
        raise RowFault(
            f"the chat template writes message {index + 1} differently when generating than in a history, "
            "so no mask for it would match inference"
        )
    written = through[len(prompt) :]
    # Found by its words: white space around them may be the template's own, or trimmed by it.
    content, words = turns[index].content, turns[index].content.strip()
    found = written.find(words)
    at = found - (len(content) - len(content.lstrip()))
    if at < 0 or not written.startswith(content, at):
        content, at = words, found
    if at < 0:
        raise RowFault(f"the chat template does not write the text of message {index + 1} as it stands")
    after = written[at + len(content) :]
    # The end-of-turn token is learned; white space after it is never generated, so it is not.
    return len(prompt), len(prompt) + at + len(content) + len(after.rstrip())
