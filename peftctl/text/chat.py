"""Conversations as text: the tokenizer's chat template, and exactly which characters of it are learned.

Templates mark no spans, so the learned part of a turn is found by rendering twice: everything up to the turn
with the generation prompt (what inference will show the model) and everything through the turn. What the second
adds to the first is what the model is to write. Where the template does not render that way the row is refused;
a mask that inference would not reproduce is never made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from peftctl.example import Conversation, RowFault, Segment, Segments, Turn


def render(turns: Sequence[Turn], tokenizer: Any, *, generation_prompt: bool) -> str:
    """The turns as the template writes them. Raises RowFault with the template's own complaint."""
    from jinja2 import TemplateError

    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    except TemplateError as error:
        raise RowFault(f"the chat template refuses these messages: {error}") from error
    return text


def segments(conversation: Conversation, tokenizer: Any) -> Segments:
    """The whole conversation as pieces, the learned ones through their end-of-turn token.

    Raises RowFault where a learned turn's text is not exactly what follows its generation prompt.
    """
    turns = conversation.turns
    full = render(turns, tokenizer, generation_prompt=False)
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
    content = turns[index].content if turns[index].content in written else turns[index].content.strip()
    at = written.find(content)
    if at < 0:
        raise RowFault(f"the chat template does not write the text of message {index + 1} as it stands")
    after = written[at + len(content) :]
    # The end-of-turn token is learned; white space after it is never generated, so it is not.
    return len(prompt), len(prompt) + at + len(content) + len(after.rstrip())
