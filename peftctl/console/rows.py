"""What ``peftctl data`` shows: rows token by token, figures of all of them, warnings."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from rich.text import Text

from peftctl.console import _results, say, table, visible
from peftctl.data.preview import Measured, Preview, Shown, Token

OPEN, CLOSE = "⟦", "⟧"  # around what is learned, where there are no colours
LEARNED, READ = "black on green", "dim"
BAR = 40


def show(found: Preview, *, plain: bool) -> None:
    """The preview on standard output; with ``plain``, and where no terminal reads it, signs mark what is learned."""
    plain = plain or not sys.stdout.isatty()
    data = found.recipe.data
    for source in data.train:
        say(f"{source.path}: {source.format}" + (f", weight {source.weight:g}" if source.weight != 1 else ""))
    template = data.template if data.template and "\n" not in data.template else "the recipe's" if data.template else ""
    say(f"template {template or 'of the tokenizer'}, max_length {data.max_length}, overlong {data.overlong}")
    for shown in found.rows:
        say()
        _row(shown, plain=plain)
    say()
    for headings, rows in (_counts(found), _lengths(found)):
        table(headings, rows)
        say()
    for name, side in found.sides.items():
        _histogram(name, side)
    if "eval" in found.sides:
        say(
            f"held-out rows that are training rows too: {found.also_trained:,}; that ask the same: {found.also_asked:,}"
        )
    for warning in found.warnings:
        say(f"warning: {warning}")


def _row(shown: Shown, *, plain: bool) -> None:
    learned = sum(token.weight != 0 for token in shown.tokens)
    part = f", {shown.part}" if shown.part else ""
    what = visible(shown.learned) or f"{learned} of them learned"
    say(f"{shown.place}{part}: {len(shown.tokens)} tokens, {what}")
    if shown.cut_before:
        say(f"[{shown.cut_before} tokens cut away here]")
    if plain:
        say("".join(_signs(shown.tokens)))
    else:
        _results().print(_colours(shown.tokens))
    if shown.cut_after:
        say(f"[{shown.cut_after} tokens cut away here]")


def _signs(tokens: Sequence[Token]) -> Iterator[str]:
    """The text with signs around each run of learned tokens, and its weight where that is not 1."""
    weight = 0.0
    for token in tokens:
        if token.weight != weight:
            yield (CLOSE if weight else "") + (_opening(token.weight) if token.weight else "")
            weight = token.weight
        yield visible(token.text)
    yield CLOSE if weight else ""


def _opening(weight: float) -> str:
    return OPEN if weight == 1.0 else f"{OPEN}{weight:g}:"


def _colours(tokens: Sequence[Token]) -> Text:
    text = Text()
    for token in tokens:
        text.append(visible(token.text), LEARNED if token.weight else READ)
    return text


def _counts(found: Preview) -> tuple[list[str], list[list[str]]]:
    """What became of the rows that were read, by side."""
    names = ["read", "filtered", "held_out", "kept"]
    reasons = list(dict.fromkeys(reason for side in found.sides.values() for reason in side.facts["dropped"]))
    others = ["rows", "truncated", "split", "rows_an_epoch", "tokens", "supervised_tokens"]
    rows = []
    for name in names:
        rows.append([name.replace("_", " "), *(_figure(side.facts.get(name, 0)) for side in found.sides.values())])
    at = rows.pop()
    for reason in reasons:
        dropped = [_figure(side.facts["dropped"].get(reason, 0)) for side in found.sides.values()]
        rows.append([f"dropped: {reason}", *dropped])
    rows.append(at)
    for name in others:
        same = name == "rows" and all(side.facts["rows"] == side.facts["kept"] for side in found.sides.values())
        if not same and any(side.facts.get(name) for side in found.sides.values()):
            label = {"supervised_tokens": "learned tokens", "split": "cut into several"}.get(name, name)
            rows.append([label.replace("_", " "), *(_figure(side.facts.get(name, 0)) for side in found.sides.values())])
    shares = [side.facts["supervised_tokens"] / side.facts["tokens"] for side in found.sides.values()]
    rows.append(["learned share", *(f"{share:.1%}" for share in shares)])
    rows.append(["same as a row before", *(_figure(side.duplicates) for side in found.sides.values())])
    shown = [row for row in rows if row[0] in ("read", "kept") or set(row[1:]) != {"0"}]
    return ["", *found.sides], shown


def _lengths(found: Preview) -> tuple[list[str], list[list[str]]]:
    """Percentiles of the rows' lengths in tokens."""
    shares = list(next(iter(found.sides.values())).percentiles)
    heads = {0: "shortest", 50: "median", 100: "longest"}
    rows = [[name, *(_figure(side.percentiles[share]) for share in shares)] for name, side in found.sides.items()]
    return ["tokens a row", *(heads.get(share, f"{share} %") for share in shares)], rows


def _histogram(name: str, side: Measured) -> None:
    most = max(count for _, _, count in side.histogram)
    wide = len(f"{side.histogram[-1][1]:,}")
    for low, high, count in side.histogram:
        bar = "█" * round(BAR * count / most) or ("▏" if count else "")
        say(f"{name:<6}{low:>{wide},} - {high:>{wide},}  {count:>9,}  {bar}".rstrip())
    say()


def _figure(value: int) -> str:
    return f"{value:,}"
