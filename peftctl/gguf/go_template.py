"""A chat template as Ollama's Go template, found by rendering: what stands before and after each turn.

A Jinja template is a program; Ollama's language has no match for most of it. But most templates write each turn by
itself, between two fixed texts that its role decides. Those texts are found by rendering conversations of which every
content is a mark, and the result is held against the template on conversations of several shapes. A template that
does anything else with its turns is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from peftctl.errors import UsageError

Turn = Mapping[str, str]
Render = Callable[[Sequence[Turn]], str]  # with what invites an answer at the end

SYSTEM, USER, ASSISTANT = "MARKsystem", "MARKuser", "MARKassistant"
AGAIN = "MARKagain"
ASKED: Turn = {"role": "user", "content": USER}
ANSWERED: Turn = {"role": "assistant", "content": ASSISTANT}


@dataclass(frozen=True)
class Between:
    """The texts before and after a turn's content."""

    before: str
    after: str

    def __call__(self, content: str) -> str:
        return self.before + content + self.after


@dataclass(frozen=True)
class Turns:
    """``system`` is None where the template takes no such message; ``without_system`` stands where there is none.
    ``invites``: what an answer follows."""

    system: Between | None
    without_system: str
    user: Between
    assistant: Between
    invites: str

    def render(self, turns: Sequence[Turn]) -> str:
        """What the Go template is to give for ``turns``."""
        if turns and turns[0]["role"] == "system" and self.system is not None:
            written = self.system(turns[0]["content"])
            turns = turns[1:]
        else:
            written = self.without_system
        by_role = {"user": self.user, "assistant": self.assistant}
        return written + "".join(by_role[turn["role"]](turn["content"]) for turn in turns) + self.invites

    def go(self) -> str:
        """The Go template. Raises UsageError where a text of it would be one of Go's own signs."""
        pieces = [self.without_system, self.invites, self.user.before, self.user.after]
        pieces += [self.assistant.before, self.assistant.after]
        pieces += [self.system.before, self.system.after] if self.system else []
        if strange := next((piece for piece in pieces if "{{" in piece or "}}" in piece or '"""' in piece), None):
            raise UsageError(f"ollama: the chat template writes {strange!r}, which Ollama's templates cannot")
        opened = self.without_system
        if self.system is not None:
            instead = "{{ else }}" + opened if opened else ""
            opened = "{{ if .System }}" + self.system("{{ .System }}") + instead + "{{ end }}"
        return (
            opened
            + "{{ range .Messages }}"
            + '{{ if eq .Role "user" }}'
            + self.user("{{ .Content }}")
            + '{{ else if eq .Role "assistant" }}'
            + self.assistant("{{ .Content }}")
            + "{{ end }}{{ end }}"
            + self.invites
        )


def turns(render: Render, begins: str) -> Turns:
    """What ``render`` writes around turns. ``begins``: what llama.cpp puts before every text by itself, which is left
    out.

    Raises UsageError where it does not write each turn by itself.
    """

    def plain(said: Sequence[Turn]) -> str:
        return render(said).removeprefix(begins)

    one = plain([ASKED])
    before, _, rest = one.partition(USER)
    middle = plain([ASKED, ANSWERED, {"role": "user", "content": AGAIN}]).removeprefix(before + USER)
    answer, _, end = middle.partition(ASSISTANT)
    between = end.partition(AGAIN)[0]
    # Behind what a user says stands what ends the turn, and then what invites an answer, or what an answer opens with.
    after = _common(rest, answer)
    system = _system(plain, USER + rest)
    # What opens a user's turn is what all that may stand before it end in.
    opens = _common(*(text[::-1] for text in [before, between, *([system.after] if system else [])]))[::-1]
    found = Turns(
        system and Between(system.before, system.after.removesuffix(opens)),
        before.removesuffix(opens),
        Between(opens, after),
        Between(answer.removeprefix(after), between.removesuffix(opens)),
        rest.removeprefix(after),
    )
    _hold(found, plain)
    return found


def _common(*texts: str) -> str:
    """The longest beginning that all have."""
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in same)


def _system(plain: Render, rest: str) -> Between | None:
    """What stands around a system message, its end with the opening of a user's turn; None where there can be none."""
    try:
        said = plain([{"role": "system", "content": SYSTEM}, ASKED])
    except Exception:  # a template refuses a role with whatever Jinja raises
        return None
    before, mark, after = said.partition(SYSTEM)
    return Between(before, after.removesuffix(rest)) if mark and after.endswith(rest) else None


def _hold(found: Turns, plain: Render) -> None:
    """Raises UsageError where ``found`` gives anything else than the template."""
    for shape in SHAPES:
        if shape[0]["role"] == "system" and found.system is None:
            continue
        wanted = plain(shape)
        if found.render(shape) != wanted:
            raise _otherwise(f"gives {wanted[:200]!r} where each turn by itself is {found.render(shape)[:200]!r}")


def _otherwise(what: str) -> UsageError:
    return UsageError(
        f"ollama: the chat template does not write each turn by itself: it {what}",
        "--to gguf has the template in the file, and llama.cpp renders it",
    )


def _chat(*contents: str, system: str = "") -> list[Turn]:
    said: list[Turn] = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return said + [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]


SHAPES: Sequence[Sequence[Turn]] = (
    _chat("Hello."),
    _chat("What is 2 + 2?", "4", "And 3 + 3?"),
    _chat("a", "b", "c", "d", "e"),
    _chat("Hello.", system="Answer in one word."),
    _chat("One\nline\n\nand more", "Two\nlines", "x", system="A system\nmessage."),
)
