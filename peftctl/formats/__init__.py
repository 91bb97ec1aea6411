"""The shapes of rows that recipes can name. To add one: a file here and a line in the table."""

from __future__ import annotations

from peftctl.formats import messages, prompt_completion
from peftctl.formats.contract import Format

FORMATS: dict[str, Format] = {
    fmt.name: fmt
    for fmt in (
        messages.FORMAT,
        prompt_completion.FORMAT,
    )
}

__all__ = ["FORMATS", "Format"]
