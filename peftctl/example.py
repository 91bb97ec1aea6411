"""What a row of data means, before any tokenizer has seen it. A format makes one; a task says which it takes.

This is a sum type: a row becomes exactly one of these, and the task's ``encode`` turns it into ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ROLES = ("system", "user", "assistant", "tool")


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
    """One message of a conversation. ``role`` is one of ROLES; ``weight`` as in Segment.

    ``fields`` is what else a template may write of it: name, tool_calls, tool_call_id, reasoning_content.
    """

    role: str
    content: str
    weight: float = 0.0
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversation:
    """Messages, in order, and the ``tools`` (JSON schemas of functions) that the model may call.

    How they look as text is the tokenizer's chat template's to say.
    """

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, the chosen one better than the rejected one."""

    chosen: Segments | Conversation
    rejected: Segments | Conversation


@dataclass(frozen=True)
class Triple:
    """A text, one that belongs to it, and one that does not."""

    anchor: str
    positive: str
    negative: str


@dataclass(frozen=True)
class Pair:
    """Two texts, and how alike they are where that is known."""

    first: str
    second: str
    score: float | None = None


@dataclass(frozen=True)
class Labelled:
    """A text, or two, and what is to be said of it: a name, several, or a number."""

    text: str
    label: str | tuple[str, ...] | float
    second: str | None = None


@dataclass(frozen=True)
class Tagged:
    """Words in order, each with its tag."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True)
class Span:
    """A question about a text, and where in it the answers stand: (first character, text) each; none: no answer."""

    question: str
    context: str
    answers: tuple[tuple[int, str], ...]


Example = Segments | Conversation | Preference | Triple | Pair | Labelled | Tagged | Span


class RowFault(ValueError):
    """A row that cannot become an example, or an example that cannot be encoded.

    Its text is the reason; ``kind`` the few words under which faults of its sort are counted.
    """

    def __init__(self, reason: str, kind: str = "") -> None:
        super().__init__(reason)
        self.kind = kind or reason
