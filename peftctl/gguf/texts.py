"""Texts on which tokenizers come apart: scripts, code, emoji, white space, numbers, and special tokens among them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PLAIN = (
    "The tide went out before noon.",
    "Hello, world!",
    "I'll say they've won, don't you think he'd agree?",
    "I'LL SAY THEY'VE WON",
    "it's it'S IT's",
    "naïve café, œuvre, coöperate, Ångström",
    "cafe\u0301 e\u0301e\u0301",
    "Der Zug nach Lübeck fährt über Gleis ß.",
    "El niño comió piñata. ¿Cuándo? ¡Ya!",
    "Ça va très bien, n'est-ce pas ?",
    "Чёрный кот не спит в субботу.",
    "Η γάτα κοιμάται στο χαλί.",
    "القط الأسود لا ينام",
    "שלום עולם, מה נשמע?",
    "東京特許許可局局長",
    "今日はいい天気ですね。散歩に行きましょう！",
    "안녕하세요, 세계 여러분",
    "สวัสดีชาวโลก ภาษาไทย",
    "नमस्ते दुनिया, कैसे हो?",
    "বাংলা ভাষা",
    "தமிழ் மொழி",
    "ქართული ენა",
    "Հայերեն լեզու",
    "አማርኛ ቋንቋ",
    "Tiếng Việt có nhiều dấu",
    "İstanbul'da ışık",
    "😀",
    "😀😃 🚀 done",
    "👩‍👩‍👧‍👦 family",
    "🏳️‍🌈🏴‍☠️",
    "👍🏽👍🏿",
    "emoji at the end 🎉",
    "a😀b",
    "\u200d\u200b\ufeff",
    "𝕳𝖊𝖑𝖑𝖔 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
    "Ⅷ ½ ² ① ㎏",
    "0",
    "7",
    "42",
    "123",
    "1234",
    "12345678901234567890",
    "3.14159",
    "1,000,000.00",
    "-17 + 5 = -12",
    "0x1F 0b1010 1e-9",
    "2024-02-29T23:59:60Z",
    "+49 (0)451 123-456",
    "v1.2.3-rc.4+build5",
    "٣٤٥ १२३ ๑๒๓",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; }",
    "\tif x:\n\t\treturn {'a': [1, 2], \"b\": None}\n",
    "SELECT * FROM t WHERE a <> 'x' AND b >= 10;",
    '<html><body class="x">&amp;nbsp;</body></html>',
    "fn main() -> Result<(), Box<dyn Error>> {}",
    "#include <stdio.h>\r\n",
    "git commit -m 'fix: a -> b' && echo $HOME/${USER}",
    "\\frac{a_1}{b^{2}} \\in \\mathbb{R}",
    '{"k": [true, null, 1.5e10]}',
    "a/b\\c|d~e`f^g",
    "___init___",
    "camelCaseAndSnake_case",
    "HTTPServerError404",
    "https://example.org/a?b=c&d=%20#e",
    "user.name+tag@mail.example.co.uk",
    "...",
    "!!??!?",
    "--- *** ___",
    "“quoted” ‘single’ «guillemets» „unten“",
    "a—b–c-d‐e",
    "€5 £6 ¥7 ₿8 $9",
    "§ ¶ † ‡ • …",
    "™®©",
    "→ ⇒ ∀x∃y ∑∫√∞≠≤",
    "╔═╗║╚╝",
    "(((nested [brackets {here}])))",
    " ",
    "  ",
    "   ",
    "\n",
    "\n\n",
    "\n\n\n",
    "\t",
    "\t\t",
    "\r\n",
    " \n",
    "\n ",
    " \n \n",
    "  \t \n",
    " a",
    "  a",
    "   a",
    "a ",
    "a  ",
    "a   ",
    "a b",
    "a  b",
    "a   b",
    "a    b",
    "a\nb",
    "a\n\nb",
    "a\n\n\nb",
    "a \n b",
    "a\tb",
    "a \tb",
    "\u00a0a\u00a0b",
    "a\u3000b",
    "a\u2003b",
    "line one\nline two\n",
    "\nline",
    "trailing space \n",
    "    indented",
    "        deeper",
    "a" * 50,
    "ab" * 40,
    "the " * 20,
    "aaaaaaaaaaaaaaaaaaaaaaaab",
    "zzzqqqxxx",
    "antidisestablishmentarianism",
    "Donaudampfschifffahrtsgesellschaft",
    "x" * 17 + " " * 9 + "y",
    "Mixed 中文 and English с русским",
    "日本語English한국어",
    "RTL עברית inside LTR",
    "a\u0300\u0301\u0302",
    "ﬁ ﬂ ﬃ",
    "ＦＵＬＬ　ｗｉｄｔｈ",
    "ſtrange",
    "ǅ ǆ Ǆ",
    "\u0131\u0130",
    "\u00ad\u2011",
    "\u202eright\u202c",
    "\ufffd",
    "A\u0000B".replace("\u0000", ""),
    "Dear Ms Okafor,\n\nThank you for your letter of 3 May.",
    "1. Wash the rice.\n2. Cook it.\n",
    "Q: Why?\nA: Because.",
    "- item\n  - nested\n    - deeper",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "# Title\n\nText with **bold** and `code`.",
)
AROUND = ("{}", " {}", "{} ", "a{}b", "a {} b", "{}\n", "\n{}", "{0}{0}", "Hi{} there")
MOST = 24  # special tokens that are tried: some models have thousands


def tricky(tokenizer: Any) -> list[str]:
    """At least 200 texts, with ``tokenizer``'s special tokens in some."""
    added = sorted(tokenizer.added_tokens_decoder.items())
    step = max(1, len(added) // MOST)
    special = [token.content for _, token in added[::step]][:MOST]
    between = [way.format(token) for token in special for way in AROUND]
    pairs = [one + two for one, two in zip(PLAIN, PLAIN[7:], strict=False)]
    return [*PLAIN, *pairs, *between]


def positions(tokenizer: Any, most: int, length: int) -> list[list[int]]:
    """Rows of ids, each up to ``length``, of plain texts: ``most`` ids in all."""
    rows: list[list[int]] = []
    left = most
    for first in range(0, len(PLAIN), 8):
        ids = tokenizer("\n".join(PLAIN[first : first + 8]))["input_ids"][: min(length, left)]
        if ids:
            rows.append(ids)
        left -= len(ids)
        if left <= 0:
            break
    return rows


def conversation(template: str | None) -> Sequence[dict[str, str]]:
    """A chat to render where there is a template."""
    if not template:
        return []
    return [
        {"role": "user", "content": "What is 2 + 2?\nAnswer in one word."},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": " Und auf Deutsch? 😀 "},
    ]
