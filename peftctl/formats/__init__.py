"""The shapes of rows that recipes can name. To add one: a file here and a line in the table."""

from __future__ import annotations

from peftctl.formats import (
    instruction,
    labelled,
    messages,
    pairs,
    preference,
    prompt_completion,
    squad,
    tagged,
    text,
    triples,
)
from peftctl.formats.contract import Format

FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        messages.FORMAT,
        instruction.FORMAT,
        prompt_completion.FORMAT,
        text.FORMAT,
        preference.FORMAT,
        pairs.FORMAT,
        triples.FORMAT,
        labelled.FORMAT,
        tagged.FORMAT,
        squad.FORMAT,
    )
}

__all__ = ["FORMATS", "Format"]
