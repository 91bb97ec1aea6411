"""What a row of data means, before any tokenizer has seen it. A format makes one; a task says which it takes.

This is a sum type: a row becomes exactly one of these, and the task's ``encode`` turns it into ids.
"""

from __future__ import annotations

from dataclasses import dataclass

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Segment:
    """A piece of text. ``weight`` scales the loss of its tokens; 0 means read, not learned."""

    text: str
    weight: float = 0.0


@dataclass(frozen=True)
class Segments:
    """Text in pieces, in order.

    ``whole``: the text begins and ends here, so the tokenizer's begin- and end-of-text tokens belong around it
    (the end is learned with the last piece). A rendered conversation is not: its template has written them.
    """

    pieces: tuple[Segment, ...]
    whole: bool = True


@dataclass(frozen=True)
class Turn:
    """One message of a conversation. ``role`` is one of ROLES; ``weight`` as in Segment."""

    role: str
    content: str
    weight: float = 0.0


@dataclass(frozen=True)
class Conversation:
    """Messages, in order. How they look as text is the tokenizer's chat template's to say."""

    turns: tuple[Turn, ...]


Example = Segments | Conversation


class RowFault(ValueError):
    """A row that cannot become an example, or an example that cannot be encoded. Its text is the reason."""
