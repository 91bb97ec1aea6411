"""Show five held-out mails of a quickstart run with the base model's answer and the adapter's."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import peftctl
from peftctl.data.sources import held_out
from peftctl.example import Conversation
from peftctl.quiet import no_progress_bars, quiet_libraries

SHOWN = 5
WIDTH = 100


def main(run: Path) -> None:
    quiet_libraries()
    no_progress_bars()
    loaded = peftctl.load(run)
    rows = held_out(loaded.run.recipe)
    for row in rows[:: len(rows) // SHOWN][:SHOWN]:
        assert isinstance(row.example, Conversation)
        *asked, answer = row.example.turns
        messages = [{"role": turn.role, "content": turn.content} for turn in asked]
        adapter = loaded.generate(messages, max_new_tokens=12)
        with loaded.base():
            base = loaded.generate(messages, max_new_tokens=12)
        mail = " ".join(asked[-1].content.split())
        print(textwrap.shorten(mail, WIDTH * 2, placeholder=" ..."))
        print(f"    truth: {answer.content:<6} base: {textwrap.shorten(base, 40):<42} adapter: {adapter}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
