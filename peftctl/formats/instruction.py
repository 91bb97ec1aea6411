"""Tasks and answers as Alpaca has them: ``{"instruction": "...", "input": "...", "output": "..."}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from peftctl.example import Conversation, Example, RowFault, Turn
from peftctl.formats.contract import SAYS_NOTHING, WRONG_TYPE, text_of


@dataclass(frozen=True)
class Instruction:
    """A chat of one question and its answer: the instruction, a blank line and the input where there is one.

    ``history`` is earlier questions with their answers, [[question, answer], ...].
    """

    name: str = "instruction"
    columns: str = "instruction: text, output: text (and input, system, history)"
    reads: tuple[str, ...] = ("instruction", "input", "output", "system", "history")
    makes: tuple[type[Example], ...] = (Conversation,)

    def matches(self, columns: frozenset[str]) -> bool:
        return {"instruction", "output"} <= columns

    def example(self, row: Mapping[str, Any]) -> Conversation:
        asked, answer = text_of(row, "instruction"), text_of(row, "output", empty=False)
        if row.get("input"):
            asked = f"{asked}\n\n{text_of(row, 'input')}" if asked else text_of(row, "input")
        if not asked.strip():
            raise RowFault("instruction says nothing", SAYS_NOTHING)
        turns = [Turn("system", text_of(row, "system"))] if row.get("system") else []
        for exchange in _history(row.get("history")):
            turns += [Turn("user", exchange[0]), Turn("assistant", exchange[1], 1.0)]
        return Conversation((*turns, Turn("user", asked), Turn("assistant", answer, 1.0)))


def _history(written: Any) -> list[list[str]]:
    if not written:
        return []
    for exchange in written if isinstance(written, list) else [None]:
        if not isinstance(exchange, list) or list(map(type, exchange)) != [str, str] or not exchange[1].strip():
            raise RowFault("history is not a list of [question, answer]", WRONG_TYPE)
    exchanges: list[list[str]] = written
    return exchanges


FORMAT = Instruction()
