"""What the recipes of each task have to beat: simpler ways on the same rows.

    python scripts/proving/rivals.py [TASK ...] [--model DIR] [--json FILE]

Tasks: mails, sentiment, words, names, meanings, messages, sounds; all without an argument. The data are in
recipes/data, those of sentiment once scripts/data_sentiment.py has made them. --model is where MiniLM is
(models/all-MiniLM-L6-v2, scripts/fetch_model.py minilm); it is used untuned. Needs pip install -e .[baselines].
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from letters import Letters
from scores import answers, classes, distance, entities, flat, retrieval, rounded, texts
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline, make_union


ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "models" / "all-MiniLM-L6-v2"

Row = dict[str, Any]
Table = dict[str, dict[str, float]]
Matrix = npt.NDArray[np.float32]
Score = Callable[[Row], npt.NDArray[Any]]  # one for each word of a row's context


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--json", type=Path, help="also write the figures there")
    options = parser.parse_args()
    if unknown := set(options.tasks) - set(TASKS):
        parser.error(f"no task {', '.join(sorted(unknown))}; there are {', '.join(TASKS)}")
    figures = {}
    for task in options.tasks or TASKS:
        figures[task] = rounded(TASKS[task](options.model))
        print(json.dumps({task: figures[task]}, indent=2), flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def rows(name: str) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows."""
    paths = [next((ROOT / "recipes" / "data").glob(f"{name}-{part}.jsonl*")) for part in ("train", "eval")]
    plain = [gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes() for path in paths]
    return tuple([json.loads(line) for line in text.splitlines()] for text in plain)


def column(of: Sequence[Row], name: str) -> list[Any]:
    return [row[name] for row in of]


def embeddings(wanted: Sequence[str], model: Path) -> Matrix:
    """Untuned MiniLM's, as its card says: the mean of the last layer over all tokens, of length 1. [texts, 384]"""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, encoder = AutoTokenizer.from_pretrained(model), AutoModel.from_pretrained(model).eval()
    places = sorted(range(len(wanted)), key=lambda at: len(wanted[at]))
    found = np.zeros((len(wanted), encoder.config.hidden_size), np.float32)
    for first in range(0, len(places), 64):
        at = places[first : first + 64]
        batch = tokenizer([wanted[each] for each in at], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            hidden = encoder(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        found[at] = torch.nn.functional.normalize(mean, dim=1).numpy()
    return found


# ---------------------------------------------------------------------------------------------- seq_cls


def sentiment(model: Path) -> Table:
    train, held_out = rows("sentiment")
    told, asked = column(train, "text"), column(held_out, "text")
    labels, truth = column(train, "label"), column(held_out, "label")
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), min_df=3, sublinear_tf=True)
    by_words = make_pipeline(words, LogisticRegression(C=1.0, max_iter=2000)).fit(told, labels)
    by_both = make_pipeline(make_union(words, letters), LogisticRegression(C=1.0, max_iter=2000)).fit(told, labels)
    probe = LogisticRegression(C=10.0, max_iter=2000).fit(embeddings(told, model), labels)
    return {
        "majority": classes(truth, [Counter(labels).most_common(1)[0][0]] * len(truth)),
        "TF-IDF + logistic regression": classes(truth, by_words.predict(asked)),
        "TF-IDF with letters + logistic regression": classes(truth, by_both.predict(asked)),
        "VADER's rules, thresholds from training": classes(truth, vader(told, labels, asked)),
        "untuned MiniLM + logistic regression": classes(truth, probe.predict(embeddings(asked, model))),
    }


def mails(model: Path) -> Table:
    train, held_out = ([turns(row) for row in each] for each in rows("spam"))
    told, labels = zip(*train, strict=True)
    asked, truth = zip(*held_out, strict=True)
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    by_words = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000)).fit(told, labels)
    return {
        "majority": classes(truth, [Counter(labels).most_common(1)[0][0]] * len(truth)),
        "TF-IDF + logistic regression": classes(truth, by_words.predict(asked)),
    }


def turns(row: Row) -> tuple[str, str]:
    """What the user sends, and the answer."""
    *_, asked, answer = row["messages"]
    return asked["content"], answer["content"]


def vader(told: Sequence[str], labels: Sequence[str], asked: Sequence[str]) -> list[str]:
    """By the score of VADER's lexicon and rules, with the two thresholds that are best by macro F1 on training rows."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    rules = SentimentIntensityAnalyzer()
    scores, new = (np.array([rules.polarity_scores(text)["compound"] for text in each]) for each in (told, asked))

    def guesses(of: npt.NDArray[Any], low: float, high: float) -> list[str]:
        return ["negative" if each < low else "positive" if each > high else "neutral" for each in of]

    steps = np.linspace(-0.9, 0.9, 37)
    pairs = [(low, high) for low in steps for high in steps if low <= high]
    best = max(pairs, key=lambda pair: classes(labels, guesses(scores, *pair))["macro_f1"])
    return guesses(new, *best)


# ---------------------------------------------------------------------------------------------- token_cls


def words(model: Path) -> Table:
    return {name: classes(flat(truth), flat(guess)) for name, truth, guess in tagged("tags")}


def names(model: Path) -> Table:
    table = {name: entities(truth, guess) for name, truth, guess in tagged("names")}
    _, held_out = rows("brown")
    capital = [["I-NAME" if at and word[0].isupper() and word != "I" else "O" for at, word in enumerate(row["tokens"])]
               for row in held_out]  # fmt: skip
    return table | {"words with a capital, but the first": entities(column(held_out, "names"), capital)}


def tagged(key: str) -> list[tuple[str, list[list[str]], list[list[str]]]]:
    """(name, truth, guesses) of the tag each word has most often; new words by the commonest tag, or by their ending
    and whether they have a capital; in lower case too, which is all that MiniLM reads."""
    train, held_out = rows("brown")
    found = []
    for case, form in (("", str), (", in lower case", str.lower)):
        pairs = [(form(word), tag) for row in train for word, tag in zip(row["tokens"], row[key], strict=True)]
        likely, rare, commonest = habits(pairs)
        for name, most in (("each word's commonest tag", 0), ("the same, new words by their ending", 4)):
            guesses = [
                [likely.get(form(word)) or by_ending(form(word), rare, commonest, most) for word in row["tokens"]]
                for row in held_out
            ]
            found.append((name + case, column(held_out, key), guesses))
    return found


def habits(pairs: Sequence[tuple[str, str]]) -> tuple[dict[str, str], dict[tuple[bool, str], Counter[str]], str]:
    """Each word's commonest tag, how often rare words have which tags by capital and ending, the commonest tag."""
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for word, tag in pairs:
        seen[word][tag] += 1
    rare: defaultdict[tuple[bool, str], Counter[str]] = defaultdict(Counter)
    for word, tags in seen.items():
        for letters in range(5 if tags.total() <= 3 else 0):
            rare[word[0].isupper(), word[max(0, len(word) - letters) :]] += tags
    likely = {word: tags.most_common(1)[0][0] for word, tags in seen.items()}
    return likely, rare, Counter(tag for _, tag in pairs).most_common(1)[0][0]


def by_ending(word: str, rare: dict[tuple[bool, str], Counter[str]], commonest: str, most: int) -> str:
    """The commonest tag of rare words with the longest same ending, of at most ``most`` letters; of all for none."""
    for letters in range(most, 0, -1):
        tags = rare.get((word[0].isupper(), word[max(0, len(word) - letters) :]))
        if tags and tags.total() >= 3:
            return tags.most_common(1)[0][0]
    return commonest


# ---------------------------------------------------------------------------------------------- question_answering


def meanings(model: Path) -> Table:
    """Rules that take one word of the context, each with a threshold for none that is best on training rows too."""
    train, held_out = rows("meanings")
    some = train[:1500]  # to find thresholds on
    tfidf = TfidfVectorizer(token_pattern="[a-z']+").fit(column(train, "context"))
    rarity = dict(zip(tfidf.get_feature_names_out(), tfidf.idf_, strict=True))
    rarest = float(tfidf.idf_.max())
    texts = sorted({text for row in [*some, *held_out] for text in (row["question"], *candidates(row))})
    known = dict(zip(texts, embeddings(texts, model), strict=True))

    def likeness(row: Row) -> npt.NDArray[Any]:
        return np.array([known[word] for word in candidates(row)]) @ known[row["question"]]

    def rare(row: Row) -> npt.NDArray[Any]:
        return np.array([rarity.get(word.lower(), rarest) for word in candidates(row)]) / rarest

    truth, right = ([row["answers"]["text"] for row in part] for part in (held_out, some))
    ways: dict[str, Score] = {
        "the longest word": lambda row: np.array([len(word) for word in candidates(row)]),
        "the last word": lambda row: np.arange(len(candidates(row))),
        "the rarest word": rare,
        "untuned MiniLM": likeness,
    }
    shares = [share / 10 for share in range(11)]
    best = max(
        shares,
        key=lambda share: answers(right, [pick(lambda r: likeness(r) + share * rare(r), row)[0] for row in some])["f1"],
    )
    ways["untuned MiniLM and rarity"] = lambda row: likeness(row) + best * rare(row)
    table: Table = {"no answer": answers(truth, [""] * len(truth))}
    for name, way in ways.items():
        tried, given = ([pick(way, row) for row in part] for part in (some, held_out))
        table[name] = answers(truth, [word for word, _ in given])
        limits = sorted({score for _, score in tried})[:: max(1, len(tried) // 200)]
        limit = max(limits, key=lambda limit: answers(right, above(tried, limit))["exact_match"])
        table[f"{name}, or none below a threshold"] = answers(truth, above(given, limit))
    return table


def candidates(row: Row) -> list[str]:
    """The words of the context but articles, which the scores take for nothing."""
    return [word for word in re.findall("[A-Za-z']+", row["context"]) if word.lower() not in ("a", "an", "the")]


def pick(way: Score, row: Row) -> tuple[str, float]:
    """The word with the highest score, and that."""
    scores = way(row)
    return candidates(row)[int(scores.argmax())], float(scores.max())


def above(given: Sequence[tuple[str, float]], limit: float) -> list[str]:
    return [word if score >= limit else "" for word, score in given]


# ---------------------------------------------------------------------------------------------- feature_extraction


def messages(model: Path) -> Table:
    train, held_out = rows("messages")
    sides = ("anchor", "positive")
    tfidf = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    tfidf.fit([row[side] for row in train for side in sides])
    told, learned = (embeddings(column(train, side), model) for side in sides)
    asked, found = (embeddings(column(held_out, side), model) for side in sides)
    mapped = Ridge(alpha=1.0).fit(told, learned).predict(asked)
    letters = [tfidf.transform(column(held_out, side)) for side in sides]
    return {
        "any": {"recall@1": 1 / len(held_out), "recall@10": 10 / len(held_out)},
        "TF-IDF of letters": retrieval((letters[0] @ letters[1].T).toarray()),
        "untuned MiniLM": retrieval(asked @ found.T),
        "untuned MiniLM, anchors through a linear map fitted on training": retrieval(
            mapped / np.linalg.norm(mapped, axis=1, keepdims=True) @ found.T
        ),
    }


# ---------------------------------------------------------------------------------------------- seq2seq_lm


def sounds(model: Path) -> Table:
    train, held_out = rows("sounds")
    truth, asked = column(held_out, "target"), column(held_out, "source")
    known = column(train, "source")
    grams = TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4)).fit(known)
    likeness = grams.transform(asked) @ grams.transform(known).T
    nearest, edited = [], []
    for word, like in zip(asked, likeness, strict=True):
        best = np.argsort(-like.toarray()[0], kind="stable")[:50]
        nearest.append(train[best[0]]["target"])
        edited.append(train[min(best, key=lambda at: distance(word, known[at]))]["target"])
    by_letters = Letters([(row["source"], row["target"].split()) for row in train])
    return {
        "the word itself": texts(truth, asked),
        "the most alike training word's (n-grams of letters)": texts(truth, nearest),
        "the nearest training word's (edits, among the 50 most alike)": texts(truth, edited),
        "each letter's commonest sounds": texts(truth, [by_letters(word, 0) for word in asked]),
        "each letter's, by the letters around it": texts(truth, [by_letters(word) for word in asked]),
    }


TASKS: dict[str, Callable[[Path], Table]] = {
    "mails": mails,
    "sentiment": sentiment,
    "words": words,
    "names": names,
    "meanings": meanings,
    "messages": messages,
    "sounds": sounds,
}

if __name__ == "__main__":
    main()
