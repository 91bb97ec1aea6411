"""Which chat template a tokenizer writes conversations with, and the token that ends a turn there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peftctl.errors import UsageError
from peftctl.example import Conversation, RowFault, Turn
from peftctl.nearest import nearest
from peftctl.text import chat
from peftctl.text.templates import TEMPLATES

MOST_BYTES = 1 << 20


def choose(tokenizer: Any, written: str | None, name: str) -> None:
    """Let ``tokenizer``, that of the model ``name``, use the template that the recipe says, if it says one.

    ``written``: the name of one of ours, or Jinja text (see ``read``). It is saved with the tokenizer. Raises
    UsageError where the tokenizer lacks tokens that a named template needs.
    """
    if written is None:
        return
    if written not in TEMPLATES:
        tokenizer.chat_template = written
        return
    vocabulary = tokenizer.get_vocab()
    lacking = [token for token in TEMPLATES[written].tokens if token not in vocabulary]
    if lacking:
        raise UsageError(
            f"data.template: {written} writes {', '.join(lacking)}, which is no token of {name}'s tokenizer",
            "a model trained with that template has them; leave the setting out to use the tokenizer's own template",
        )
    if "eos_token" in TEMPLATES[written].text and tokenizer.eos_token is None:
        raise UsageError(f"data.template: {written} ends answers with the end of text, which {name} has no token for")
    tokenizer.chat_template = TEMPLATES[written].text


def read(written: str, path: Path) -> str:
    """What the recipe's ``data.template`` stands for: a name as it is, Jinja text, or the text of the file ``path``.

    Raises UsageError where it is none of them, or the text is no template.
    """
    if written in TEMPLATES:
        return written
    if "{{" in written or "{%" in written:
        text, where = written, "data.template"
    else:
        try:
            with path.open("rb") as file:
                held = file.read(MOST_BYTES + 1)
            if len(held) > MOST_BYTES:
                raise UsageError(f"data.template: {path}: longer than a template can be ({MOST_BYTES} bytes)")
            text, where = held.decode("utf-8-sig"), f"data.template: {path}"
        except (OSError, ValueError) as error:  # no text, or what cannot be a file's name
            near = nearest(written, TEMPLATES)
            raise UsageError(
                f"data.template: {written!r} is no template that peftctl knows, and no text file"
                f"{'' if isinstance(error, FileNotFoundError) else f' ({error})'}; allowed: {', '.join(TEMPLATES)}, "
                f"a Jinja file, or Jinja text" + (f"; did you mean {near}?" if near else "")
            ) from None
        if not text.strip():
            raise UsageError(f"{where}: is empty")
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:  # by what renders it: tags and filters are known there that are not Jinja's
        _compile_jinja_template(text)
    except TemplateSyntaxError as error:
        raise UsageError(f"{where}:{error.lineno}: no Jinja template: {error.message}") from None
    except RecursionError:
        raise UsageError(f"{where}: no Jinja template: nested too deeply") from None
    return text


def end_of_turn(tokenizer: Any) -> int | None:
    """The id that the template ends an answer with, as training learns it.

    None where it ends with mere text, or writes no plain exchange that could be learned. Raises UsageError where the
    template takes too long.
    """
    if not tokenizer.chat_template:
        return None
    turns = (Turn("user", "a"), Turn("assistant", "b", weight=1.0))
    try:
        (row,) = chat.segments(Conversation(turns), tokenizer)
    except RowFault:  # as with templates that begin an answer otherwise when generating
        return None
    learned = [piece.text for piece in row.pieces if piece.weight]
    last: int = tokenizer(learned[-1], add_special_tokens=False)["input_ids"][-1]
    return last if last in tokenizer.all_special_ids or last in tokenizer.added_tokens_decoder else None
