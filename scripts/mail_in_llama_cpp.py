"""Have llama.cpp answer a held-out mail of a quickstart run from the GGUF file that the run was exported to.

python scripts/mail_in_llama_cpp.py RUN MODEL.gguf
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from llama_cpp import Llama

from peftctl.data.sources import held_out
from peftctl.example import Conversation
from peftctl.run import open_run

WIDTH = 200


def main(run: Path, file: Path) -> None:
    row = held_out(open_run(run).recipe)[0]
    assert isinstance(row.example, Conversation)
    *asked, answer = row.example.turns
    model = Llama(str(file), n_ctx=2048, verbose=False)
    messages = [{"role": turn.role, "content": turn.content} for turn in asked]
    said = model.create_chat_completion(messages, max_tokens=12, temperature=0.0)["choices"][0]
    print(textwrap.shorten(" ".join(asked[-1].content.split()), WIDTH, placeholder=" ..."))
    print(
        f"    truth: {answer.content}   llama.cpp: {said['message']['content']}   (ended by: {said['finish_reason']})"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
