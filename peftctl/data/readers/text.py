"""Plain text: each line that is not blank is a row with the one column ``text``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from peftctl.data.readers.contract import Numbered, TooLarge, lines, not_utf8


def read(where: str, file: BinaryIO) -> Iterator[Numbered]:
    """``{"text": line}`` without the line's end, numbered by line."""
    for number, line in lines(file):
        if isinstance(line, TooLarge):
            yield number, line
        elif line.strip():
            try:
                yield number, {"text": line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")}
            except UnicodeDecodeError as error:
                yield number, not_utf8(error)
